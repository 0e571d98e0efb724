-- Gives up a refill that did not happen. ARGV: life of the place, pool, number of the refill.
local place, why = load_all()
if not place then return { why, '0', '0', '0' } end
local pool, at = pool_of(place, ARGV[2])
if pool then
    for one = #pool.c, 1, -1 do
        if pool.c[one][1] == tonumber(ARGV[3]) then table.remove(pool.c, one) end
    end
    if pool.n == 0 then table.remove(place.p, at) end
end
return answer(place, 'done')
