-- Strands what is overdue, and says what is to be reported.
-- ARGV: life of the place, pause between reports, time after which one prolongs, and borrows that were answered.
local place, why = load_all()
if not place then return { why, '0', '0', '0' } end
confirm_answered(place, 4)
local stranded, orders = strand(place), {}
if now - place.t >= tonumber(ARGV[2]) then
    place.t = now
    for at = #place.p, 1, -1 do
        local pool = place.p[at]
        local doubtful = false
        for _, refill in ipairs(pool.c) do doubtful = doubtful or now - refill[2] >= OPEN end
        if pool.x == 1 then
            order(orders, pool, '0')
        elseif doubtful then
            -- Whoever filled it is lost: what may have been lent by that goes back, and does not come any more.
            pool.c = {}
            if next(pool.L) then
                pool.n = pool.n + 1
                pool.f = now
                order(orders, pool, text(pool.l + out(pool)))
            end
        elseif next(pool.L) and pool.n > 0 and (pool.s ~= pool.o or now - pool.f >= tonumber(ARGV[3])) then
            pool.n = pool.n + 1
            pool.f = now
            order(orders, pool, '-1')
        end
    end
end
return answer(place, #place.p == 0 and 'rests' or 'ticked', text(stranded), nil, nil, orders)
