-- What PostgreSQL does not know of: used of pools; and what of them nobody holds, or has counted at once.
local place = load()
if not place then return { 'none', '0', '0', '0' } end
local more, free = 0, 0
for _, pool in ipairs(place.p) do
    more = more + pool.s - pool.o
    free = free + pool.l + pool.s - pool.o
    for _, lease in ipairs(pool.L) do
        more = more + lease.u
        free = free + lease.u
    end
end
return { 'place', text(more), text(free), '0' }
