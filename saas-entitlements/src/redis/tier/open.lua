-- Reserves the place of a slice for whoever knows the nonce. KEYS: slice. ARGV: nonce, life.
local slice = read(KEYS[1])
if slice and slice[3] == history() and slice[4] ~= ARGV[1] then return { 'busy' } end
redis.call('set', KEYS[1], sealed(KEYS[1], '1|open|' .. history() .. '|' .. ARGV[1]), 'px', ARGV[2])
return { 'open' }
