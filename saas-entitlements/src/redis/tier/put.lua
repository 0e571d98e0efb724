-- Puts a slice into the place that its nonce has reserved: once, however late or often it comes.
-- KEYS: slice. ARGV: nonce, token, rule, lent, base, life.
local place = read(KEYS[1])
if not place or place[3] ~= history() then return { 'refused' } end
if place[2] == 'slice' and place[4] == ARGV[2] then return { 'put' } end
if place[2] ~= 'open' or place[4] ~= ARGV[1] then return { 'refused' } end
local body = table.concat({ '1', 'slice', history(), ARGV[2], ARGV[3], ARGV[4], ARGV[4], ARGV[5] }, '|')
redis.call('set', KEYS[1], sealed(KEYS[1], body), 'px', ARGV[6])
return { 'put' }
