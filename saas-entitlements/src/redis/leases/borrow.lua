-- Lends of a pool, or says how it is to be filled first.
-- ARGV: life of the place, rule, lease, number, spent, need, want, cost, life, question, and the token of a new pool where
-- the caller fills it. Comes after `top_up.lua`.
-- A living lease needs nothing of those that have ended, unless others are overdue.
if not lease or is_late(place) then
    place, why = recall(place, why)
    if not place then lease, pool = nil, nil end
end
if lease then
    if number <= lease.n then
        if lease.q == ARGV[10] then return answer(place, 'lent', text(lease.a), text(used(place)), why) end
        return { 'fenced', '0', '0', '0' }
    end
    if spent < lease.s or spent > lease.l then return { 'impossible', '0', '0', '0' } end
elseif place and ended(ARGV[3]) then
    return { 'fenced', '0', '0', '0' }
elseif number > 0 then
    return { 'unknown', '0', '0', why or '0' }
end
place = place or fresh(why)
if gone then strand(place, ARGV[3]) end
pool = pool or current(place)
local fits = pool and pool.r == ARGV[2]
if pool and not fits and not ARGV[11] then return answer(place, 'other') end
if place.w > now then want = 0 end
if fits then
    local units = math.min(want, pool.l - need)
    units = units - units % cost
    if units > 0 or units == 0 and lease and want == 0 then
        if not lease then
            lease = new_lease(pool)
            if not lease then return answer(place, 'full') end
        end
        lend(pool, ARGV[3], lease, units, need, spent, number, life, ARGV[10])
        return answer(place, 'lent', text(units), text(used(place)), why)
    end
end
if not ARGV[11] then return answer(place, 'short', nil, nil, why) end
if not pool then
    if #place.p >= MOST_POOLS then return answer(place, 'full', nil, nil, why) end
    pool = { k = ARGV[11], r = ARGV[2], l = 0, s = 0, o = 0, n = 0, c = {}, f = now, x = 0, L = {}, u = 0, d = math.huge }
    place.p[#place.p + 1] = pool
elseif pool.n == 0 then
    return answer(place, 'full')
else
    pool.n = pool.n + 1
end
if #pool.c >= MOST_REFILLS or pool.s > MOST_SPENT then return answer(place, 'full') end
pool.c[#pool.c + 1] = { pool.n, now }
return answer(place, 'refill', pool.k, text(pool.n), text(pool.s))
