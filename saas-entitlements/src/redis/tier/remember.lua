-- Keeps the key of a use that was counted elsewhere. KEYS: key. ARGV: amount, how long.
if not read(KEYS[1]) then
    redis.call('set', KEYS[1], sealed(KEYS[1], '1|key|' .. ARGV[1] .. '|-'), 'px', ARGV[2])
end
return { 'done' }
