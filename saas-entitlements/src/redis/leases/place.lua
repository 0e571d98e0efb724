-- A place is what Redis holds of one meter's window: pools of units that PostgreSQL has lent, and what of them is lent on.
-- KEYS: the place. ARGV[1]: its life.
--
-- place: v 'lease', h history, b used as PostgreSQL said last, w wanted until, t reported at, p pools, e leases that have ended.
-- pool: k token, r rule, l left, s spent, o of that, known to PostgreSQL, n last number, c refills under way, f told at,
--       x is to end, L leases.
-- lease: k token, l lent, s spent, n number, u counted by the last borrow and not confirmed yet, x expires, q the question
--       that was answered last, a what it was lent.
local MOST_LEASES, MOST_POOLS, MOST_REFILLS, MOST_ENDED = 256, 4, 16, 64
-- So far below 2^53 that a last refill fits.
local MOST_SPENT = 4503599627370496
local OPEN, WANTED = 10000, 1000
local clock = redis.call('time')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function load()
    local value = redis.pcall('get', KEYS[1])
    if value == false then return nil, 'none' end
    local body = unsealed(KEYS[1], value)
    if not body or redis.call('pttl', KEYS[1]) < 0 then return nil, 'foreign' end
    local read, place = pcall(cmsgpack.unpack, string.sub(body, 3))
    if not read or type(place) ~= 'table' or place.v ~= 'lease' then return nil, 'foreign' end
    if place.h ~= history() then return nil, 'rewound' end
    return place
end
local function fresh()
    return { v = 'lease', h = history(), b = 0, w = 0, t = 0, p = {}, e = {} }
end
local function save(place)
    redis.call('set', KEYS[1], sealed(KEYS[1], '1|' .. cmsgpack.pack(place)), 'px', ARGV[1])
end
local function find(place, token)
    for _, pool in ipairs(place.p) do
        for at, lease in ipairs(pool.L) do
            if lease.k == token then return lease, pool, at end
        end
    end
end
local function ended(place, token)
    for _, lease in ipairs(place.e) do
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
-- Used in the window, as far as is known here.
local function used(place)
    local total = place.b
    for _, pool in ipairs(place.p) do
        total = total + pool.s - pool.o
        for _, lease in ipairs(pool.L) do total = total + lease.u end
    end
    return total
end
-- Out with holders.
local function out(pool)
    local total = 0
    for _, lease in ipairs(pool.L) do total = total + lease.l - lease.s + lease.u end
    return total
end
local function confirm(pool, lease)
    pool.s = pool.s + lease.u
    lease.u = 0
end
local function leave(place, pool, at, how)
    local lease = table.remove(pool.L, at)
    place.e[#place.e + 1] = { k = lease.k, n = lease.n, how = how }
    if #place.e > MOST_ENDED then table.remove(place.e, 1) end
end
-- What overdue holders had not reported counts as used.
local function strand(place, beside)
    local total = 0
    for _, pool in ipairs(place.p) do
        for at = #pool.L, 1, -1 do
            local lease = pool.L[at]
            if lease.x <= now and lease.k ~= beside then
                confirm(pool, lease)
                total = total + lease.l - lease.s
                pool.s = pool.s + lease.l - lease.s
                leave(place, pool, at, 'lost')
            end
        end
    end
    return total
end
-- Borrows of which it is known that they were answered: pairs of lease and number, from an argument on.
local function confirm_answered(place, from)
    for at = from, #ARGV, 2 do
        local lease, pool = find(place, ARGV[at])
        if lease and lease.n == tonumber(ARGV[at + 1]) then confirm(pool, lease) end
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
        if pool.x == 0 and #pool.L == 0 and #pool.c == 0 then
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
