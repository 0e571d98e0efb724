-- Takes units of the slice, and keeps the use until it is settled: all or nothing, and once for an id.
-- KEYS: slice, pending, key. ARGV: rule, units, id, amount, use, how long to remember, how long to keep, the most to keep.
local known, why = read(KEYS[3])
if known then return { 'known', known[3], known[4] } end
if why == 'foreign' then return { 'foreign' } end
local slice, missing = read(KEYS[1])
if not slice then return { missing } end
if slice[2] ~= 'slice' then return { 'opening' } end
if slice[3] ~= history() then return { 'rewound' } end
if slice[5] ~= ARGV[1] then return { 'other' } end
local lent, left, units = tonumber(slice[6]), tonumber(slice[7]), tonumber(ARGV[2])
if units > left then return { 'short' } end
local kept = redis.pcall('hlen', KEYS[2])
if type(kept) ~= 'number' then return { 'foreign' } end
if kept >= tonumber(ARGV[8]) then return { 'full' } end
local life = math.max(redis.call('pttl', KEYS[1]), 1)
slice[7] = text(left - units)
-- In this order: were one of them not written, units would be lost and not won.
redis.call('set', KEYS[1], sealed(KEYS[1], table.concat(slice, '|')), 'px', life)
redis.call('hset', KEYS[2], ARGV[3], sealed(KEYS[2], '1|' .. slice[4] .. '|' .. ARGV[5]))
redis.call('pexpire', KEYS[2], ARGV[7])
redis.call('set', KEYS[3], sealed(KEYS[3], '1|key|' .. ARGV[4] .. '|' .. ARGV[3]), 'px', ARGV[6])
return { 'taken', slice[4], slice[8], text(lent - left) }
