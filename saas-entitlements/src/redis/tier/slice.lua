-- A slice: 1, 'slice', history, token, rule, lent, left, base. A slice to come: 1, 'open', history, nonce.
-- A known use: 1, 'key', amount, id.
local function read(key)
    local value = redis.pcall('get', key)
    if value == false then return nil, 'none' end
    local body = unsealed(key, value)
    if not body or redis.call('pttl', key) < 0 then return nil, 'foreign' end
    local fields = {}
    for field in string.gmatch(body, '[^|]+') do fields[#fields + 1] = field end
    return fields
end
