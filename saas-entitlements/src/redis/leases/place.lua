-- A place is what Redis holds of one meter's window: pools of units that PostgreSQL has lent, and what of them is lent on.
-- KEYS: the place. ARGV[1]: its life.
--
-- It is a hash: `place`, and `seal`, a checksum over its key and that, which each borrow reads and writes; and `ended`, the
-- leases that have ended, which a borrow of a living lease leaves alone. Redis' Lua hashes each byte of a string that it makes,
-- so what is read and written is kept short and in one piece, and of the leases a borrow opens its own.
--
-- place: v 'lease', h history, b used as PostgreSQL said last, w wanted until, t reported at, p pools, g number of `ended`.
-- pool: k token, r rule, l left, s spent, o of that, known to PostgreSQL, n last number, c refills under way, f told at,
--       x is to end, L leases by token, u counted by their last borrows and not confirmed yet, d none of them expires before.
-- lease: l lent, s spent, n number, u counted by the last borrow and not confirmed yet, x expires, a what that borrow was lent,
--       q its question.
local clock = redis.call('time')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
-- The leases that have ended, as far as they were read; and whether there is more to be said of them.
local gone, is_more_gone
local function load()
    local found = redis.pcall('hmget', KEYS[1], 'place', 'seal')
    if found.err then return nil, 'foreign' end
    local body, left = found[1], redis.call('pttl', KEYS[1])
    if left == -2 then return nil, 'none' end
    if not body or found[2] ~= redis.sha1hex(KEYS[1] .. '|' .. body) or left < 0 then return nil, 'foreign' end
    local read, place = pcall(cmsgpack.unpack, body)
    if not read or type(place) ~= 'table' or place.v ~= 'lease' then return nil, 'foreign' end
    if place.h ~= history() then return nil, 'rewound' end
    return place
end
local function save(place)
    if is_more_gone then
        place.g = place.g + 1
        redis.call('hset', KEYS[1], 'ended', sealed(KEYS[1] .. '|' .. place.g, '1|' .. cmsgpack.pack(gone)))
    end
    local body = cmsgpack.pack(place)
    redis.call('hset', KEYS[1], 'place', body, 'seal', redis.sha1hex(KEYS[1] .. '|' .. body))
    redis.call('pexpire', KEYS[1], ARGV[1])
end
local LEASE = '<ddddddc16'
local function opened(packed)
    local l, s, n, u, x, a, q = struct.unpack(LEASE, packed)
    return { l = l, s = s, n = n, u = u, x = x, a = a, q = q }
end
local function close(pool, token, lease)
    pool.L[token] = struct.pack(LEASE, lease.l, lease.s, lease.n, lease.u, lease.x, lease.a, lease.q)
    pool.d = math.min(pool.d, lease.x)
end
local function find(place, token)
    for _, pool in ipairs(place.p) do
        local packed = pool.L[token]
        if packed then return opened(packed), pool end
    end
end
-- Used in the window, as far as is known here.
local function used(place)
    local total = place.b
    for _, pool in ipairs(place.p) do
        total = total + pool.s - pool.o + pool.u
    end
    return total
end
local function confirm(pool, lease)
    pool.s = pool.s + lease.u
    pool.u = pool.u - lease.u
    lease.u = 0
end
-- Whether a lease may be overdue.
local function is_late(place)
    for _, pool in ipairs(place.p) do
        if pool.d <= now then return true end
    end
end
-- Lends units beside what is counted at once, and counts what was spent of the lease.
local function lend(pool, token, lease, units, need, spent, number, life, question)
    confirm(pool, lease)
    pool.s = pool.s + spent - lease.s
    pool.l = pool.l - units - need
    pool.u = pool.u + need
    lease.l = lease.l + units
    lease.s, lease.n, lease.u, lease.x = spent, number, need, now + life
    lease.a, lease.q = units, question
    close(pool, token, lease)
end
