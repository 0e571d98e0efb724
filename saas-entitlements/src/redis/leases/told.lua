-- What PostgreSQL said to a report of a pool. ARGV: life of the place, pool, 'kept' or 'over', used or '-1', spent.
local place, why = load_all()
if not place then return { why, '0', '0', '0' } end
local pool, at = pool_of(place, ARGV[2])
if pool and ARGV[3] == 'kept' then
    learn(place, pool, tonumber(ARGV[4]), tonumber(ARGV[5]))
elseif pool then
    for token, packed in pairs(pool.L) do leave(pool, token, opened(packed), 'lost') end
    table.remove(place.p, at)
    if ARGV[4] ~= '-1' then place.b = tonumber(ARGV[4]) end
end
return answer(place, 'done')
