-- What is not needed where a living lease is topped up: making and ending leases and pools, and reports of them.
local MOST_LEASES, MOST_POOLS, MOST_REFILLS, MOST_ENDED = 256, 4, 16, 64
-- So far below 2^53 that a last refill fits.
local MOST_SPENT = 4503599627370496
local OPEN, WANTED = 10000, 1000
-- With the leases that have ended. A place without those that belong to it is not believed: nobody is to lend of it any more.
local function recall(place, why)
    if not place then return nil, why end
    gone = {}
    if place.g == 0 then return place end
    local body = unsealed(KEYS[1] .. '|' .. place.g, redis.call('hget', KEYS[1], 'ended'))
    if not body then
        redis.call('del', KEYS[1])
        return nil, 'foreign'
    end
    gone = cmsgpack.unpack(string.sub(body, 3))
    return place
end
local function load_all()
    return recall(load())
end
-- `why`: why there is none. One of an older history is written over: nothing of it is read again.
local function fresh(why)
    if why == 'foreign' then redis.call('del', KEYS[1]) end
    gone = {}
    return { v = 'lease', h = history(), b = 0, w = 0, t = 0, p = {}, g = 0 }
end
-- A lease that holds nothing yet, unless there are too many.
local function new_lease(pool)
    local leases = 0
    for _ in pairs(pool.L) do leases = leases + 1 end
    if leases < MOST_LEASES then return { l = 0, s = 0, u = 0 } end
end
local function ended(token)
    for _, lease in ipairs(gone) do
        if lease.k == token then return lease end
    end
end
local function pool_of(place, token)
    for at, pool in ipairs(place.p) do
        if pool.k == token then return pool, at end
    end
end
-- Whose units are lent on.
local function current(place)
    for _, pool in ipairs(place.p) do
        if pool.x == 0 then return pool end
    end
end
-- Out with holders.
local function out(pool)
    local total = 0
    for _, packed in pairs(pool.L) do
        local lease = opened(packed)
        total = total + lease.l - lease.s + lease.u
    end
    return total
end
local function remember(token, number, how)
    gone[#gone + 1] = { k = token, n = number, how = how }
    if #gone > MOST_ENDED then table.remove(gone, 1) end
    is_more_gone = true
end
local function leave(pool, token, lease, how)
    pool.L[token] = nil
    remember(token, lease.n, how)
end
-- What overdue holders had not reported counts as used.
local function strand(place, beside)
    local total = 0
    for _, pool in ipairs(place.p) do
        pool.d = math.huge
        for token, packed in pairs(pool.L) do
            local lease = opened(packed)
            if lease.x <= now and token ~= beside then
                confirm(pool, lease)
                total = total + lease.l - lease.s
                pool.s = pool.s + lease.l - lease.s
                leave(pool, token, lease, 'lost')
            else
                pool.d = math.min(pool.d, lease.x)
            end
        end
    end
    return total
end
-- Borrows of which it is known that they were answered: pairs of lease and number, from an argument on.
local function confirm_answered(place, from)
    for at = from, #ARGV, 2 do
        local lease, pool = find(place, ARGV[at])
        if lease and lease.n == tonumber(ARGV[at + 1]) then
            confirm(pool, lease)
            close(pool, ARGV[at], lease)
        end
    end
end
-- What PostgreSQL said was used, when it had heard of so much of the pool.
local function learn(place, pool, said, told)
    if told < pool.o then return end
    place.b = said
    pool.o = told
end
-- A report that is to be made of a pool. `keep`: what it still needs; text of a number, or '-1' for all that it has.
local function order(orders, pool, keep)
    for _, part in ipairs({ pool.k, text(pool.n), text(pool.s), keep, text(pool.x) }) do orders[#orders + 1] = part end
end
-- A pool that nobody has anything of ends.
local function conclude(place, orders)
    for _, pool in ipairs(place.p) do
        if pool.x == 0 and not next(pool.L) and #pool.c == 0 then
            pool.x = 1
            pool.n = pool.n + 1
            pool.f = now
            order(orders, pool, '0')
        end
    end
end
-- Saves, and answers: outcome, three words, and reports to be made of pools.
local function answer(place, outcome, one, two, three, orders)
    orders = orders or {}
    conclude(place, orders)
    save(place)
    local answered = { outcome, one or '0', two or '0', three or '0' }
    for _, part in ipairs(orders) do answered[#answered + 1] = part end
    return answered
end
