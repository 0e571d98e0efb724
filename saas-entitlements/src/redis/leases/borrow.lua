-- Lends of a pool, or says how it is to be filled first.
-- ARGV: life of the place, rule, lease, number, spent, need, want, cost, life, question, token of a new pool, 'take' or 'refill'.
local place, why = load()
place = place or fresh()
local number, spent, need = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local want, cost = tonumber(ARGV[7]), tonumber(ARGV[8])
local lease, pool = find(place, ARGV[3])
if lease then
    if number <= lease.n then
        if lease.q == ARGV[10] then return answer(place, 'lent', text(lease.a), text(used(place)), why) end
        return { 'fenced', '0', '0', '0' }
    end
    if spent < lease.s or spent > lease.l then return { 'impossible', '0', '0', '0' } end
elseif ended(place, ARGV[3]) then
    return { 'fenced', '0', '0', '0' }
elseif number > 0 then
    return { 'unknown', '0', '0', why or '0' }
end
strand(place, ARGV[3])
pool = pool or current(place)
local fits = pool and pool.r == ARGV[2]
if pool and not fits and ARGV[12] == 'take' then return answer(place, 'other') end
if place.w > now then want = 0 end
if fits then
    local units = math.min(want, pool.l - need)
    units = units - units % cost
    if units > 0 or units == 0 and lease and want == 0 then
        if not lease then
            if #pool.L >= MOST_LEASES then return answer(place, 'full') end
            lease = { k = ARGV[3], l = 0, s = 0, u = 0 }
            pool.L[#pool.L + 1] = lease
        end
        confirm(pool, lease)
        pool.s = pool.s + spent - lease.s
        pool.l = pool.l - units - need
        lease.l = lease.l + units
        lease.s, lease.u, lease.n, lease.x = spent, need, number, now + tonumber(ARGV[9])
        lease.q, lease.a = ARGV[10], units
        return answer(place, 'lent', text(units), text(used(place)), why)
    end
end
if ARGV[12] == 'take' then return answer(place, 'short', nil, nil, why) end
if not pool then
    if #place.p >= MOST_POOLS then return answer(place, 'full', nil, nil, why) end
    pool = { k = ARGV[11], r = ARGV[2], l = 0, s = 0, o = 0, n = 0, c = {}, f = now, x = 0, L = {} }
    place.p[#place.p + 1] = pool
elseif pool.n == 0 then
    return answer(place, 'full')
else
    pool.n = pool.n + 1
end
if #pool.c >= MOST_REFILLS or pool.s > MOST_SPENT then return answer(place, 'full') end
pool.c[#pool.c + 1] = { pool.n, now }
return answer(place, 'refill', pool.k, text(pool.n), text(pool.s))
