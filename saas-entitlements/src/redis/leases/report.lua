-- Counts what was used of a lease; the last report brings the rest back.
-- ARGV: life of the place, lease, number, spent, '1' for the last, life.
local place, why = load_all()
if not place then return { 'unknown', '0', '0', why } end
local number, spent = tonumber(ARGV[3]), tonumber(ARGV[4])
local lease, pool = find(place, ARGV[2])
if not lease then
    local was = ended(ARGV[2])
    if not was then return { 'unknown', '0', '0', '0' } end
    if was.how == 'settled' and was.n == number and ARGV[5] == '1' then
        return { 'settled', '0', text(used(place)), '0' }
    end
    return { 'fenced', '0', '0', '0' }
end
local wanted = place.w > now and '1' or '0'
if number <= lease.n then return { 'kept', wanted, text(used(place)), '0' } end
if spent < lease.s or spent > lease.l then return { 'impossible', '0', '0', '0' } end
confirm(pool, lease)
pool.s = pool.s + spent - lease.s
lease.s, lease.n, lease.x = spent, number, now + tonumber(ARGV[6])
if ARGV[5] ~= '1' then
    close(pool, ARGV[2], lease)
    return answer(place, 'kept', wanted, text(used(place)))
end
pool.l = pool.l + lease.l - spent
leave(pool, ARGV[2], lease, 'settled')
return answer(place, 'settled', wanted, text(used(place)))
