-- The common case of a borrow: a living lease is topped up out of its pool. It is decided before anything is so much as defined
-- that only other cases need. ARGV: those of `borrow.lua`.
local place, why = load()
local lease, pool
if place then lease, pool = find(place, ARGV[3]) end
local number, spent, need = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local want, cost, life = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
if lease and pool.r == ARGV[2] and number > lease.n and spent >= lease.s and spent <= lease.l and not is_late(place) then
    local units = place.w > now and 0 or math.min(want, pool.l - need)
    units = units - units % cost
    if units > 0 then
        lend(pool, ARGV[3], lease, units, need, spent, number, life, ARGV[10])
        save(place)
        return { 'lent', text(units), text(used(place)), '0' }
    end
end
