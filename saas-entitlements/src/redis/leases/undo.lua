-- Ends a lease whose holder does not know whether a borrow happened: undoes the borrow, or sees to it that it will not happen.
-- ARGV: life of the place, lease, number of the borrow, spent, question.
local place, why = load_all()
place = place or fresh(why)
local number, spent = tonumber(ARGV[3]), tonumber(ARGV[4])
local lease, pool = find(place, ARGV[2])
if not lease then
    if not ended(ARGV[2]) then remember(ARGV[2], number, 'undone') end
    return answer(place, 'done')
end
if lease.n == number and lease.q == ARGV[5] then
    lease.l = lease.l - lease.a
    pool.l = pool.l + lease.a + lease.u
    pool.u = pool.u - lease.u
    lease.u = 0
end
confirm(pool, lease)
if spent >= lease.s and spent <= lease.l then
    pool.s = pool.s + spent - lease.s
    pool.l = pool.l + lease.l - spent
else
    pool.s = pool.s + lease.l - lease.s
end
leave(pool, ARGV[2], lease, 'undone')
return answer(place, 'done')
