-- Forgets settled uses, and lets the slice live on. KEYS: slice, pending. ARGV: token, life, ids.
for at = 3, #ARGV do redis.pcall('hdel', KEYS[2], ARGV[at]) end
local slice = read(KEYS[1])
if slice and slice[2] == 'slice' and slice[4] == ARGV[1] and slice[3] == history() then
    redis.call('pexpire', KEYS[1], ARGV[2])
end
return { 'done' }
