-- Every value is `1|…|check`: a schema tag, and a checksum over its key and itself. What is not of that form, what was
-- written for another key and what would never expire is foreign.
local function sealed(key, body)
    return body .. '|' .. string.sub(redis.sha1hex(key .. '|' .. body), 1, 16)
end
local function unsealed(key, value)
    if type(value) ~= 'string' or string.sub(value, 1, 2) ~= '1|' then return nil end
    local body = string.sub(value, 1, -18)
    if sealed(key, body) ~= value then return nil end
    return body
end
-- The name that Redis itself gives to a history of writes: another one after each restart and each promotion. What an
-- older history said of a balance may be told twice.
local function history()
    local said = redis.call('info', 'replication')
    local _, before = string.find(said, 'master_replid:', 1, true)
    return string.sub(said, before + 1, before + 40)
end
-- Numbers are doubles here: below 2^53 they are exact, but not when they are turned into text by themselves.
local function text(number)
    return string.format('%.0f', number)
end
