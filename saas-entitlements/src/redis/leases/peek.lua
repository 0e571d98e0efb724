-- What PostgreSQL does not know of: used of pools; and what of them nobody holds, or has counted at once.
local place = load()
if not place then return { 'none', '0', '0', '0' } end
local more, free = 0, 0
for _, pool in ipairs(place.p) do
    local unheard = pool.s - pool.o + pool.u
    more = more + unheard
    free = free + pool.l + unheard
end
return { 'place', text(more), text(free), '0' }
