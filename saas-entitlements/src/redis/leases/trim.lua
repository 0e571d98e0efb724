-- Takes back what nobody holds, and has it given back. ARGV: life of the place, a lease whose holder wants more, or '', how
-- many units it lacks, and borrows that were answered.
local place, why = load_all()
if not place then return { why, '0', '0', '0' } end
confirm_answered(place, 4)
strand(place, ARGV[2])
local given, held, orders = 0, 0, {}
for _, pool in ipairs(place.p) do
    for token, packed in pairs(pool.L) do
        local lease = opened(packed)
        if token ~= ARGV[2] then held = held + lease.l - lease.s end
    end
    -- One that is being made is not PostgreSQL's yet.
    if pool.x == 0 and pool.n > 0 then
        given = given + pool.l
        pool.l = 0
        pool.c = {}
        if next(pool.L) then
            pool.n = pool.n + 1
            pool.f = now
            order(orders, pool, text(out(pool)))
        end
    elseif pool.x == 1 then
        order(orders, pool, '0')
    end
end
if ARGV[2] ~= '' and held > 0 and given + held >= tonumber(ARGV[3]) then place.w = now + WANTED end
return answer(place, 'trimmed', text(given), nil, nil, orders)
