-- Answers what became of the slice, and then the uses that are not settled: token, id and use of each.
-- KEYS: slice, pending. ARGV: 'peek', or 'end' for any slice, or the token of the one to end; the nonce of a place to give up;
-- the most to answer.
local answer
local slice, why = read(KEYS[1])
if ARGV[1] == 'peek' then
    answer = { 'peeked', '', '0' }
elseif not slice then
    answer = { why, '', '0' }
elseif slice[2] == 'open' then
    if slice[4] == ARGV[2] then
        redis.call('del', KEYS[1])
        answer = { 'unopened', '', '0' }
    else
        answer = { 'opening', '', '0' }
    end
elseif ARGV[1] ~= 'end' and ARGV[1] ~= slice[4] then
    answer = { 'other', '', '0' }
else
    redis.call('del', KEYS[1])
    answer = { slice[3] == history() and 'ended' or 'rewound', slice[4], slice[7] }
end
local foreign = 0
local most = tonumber(ARGV[3])
local pending = redis.pcall('hgetall', KEYS[2])
if pending.err then
    foreign = 1
    pending = {}
end
local uses = {}
for at = 1, math.min(#pending, 2 * most), 2 do
    local token, use = nil, nil
    local body = unsealed(KEYS[2], pending[at + 1])
    if body then token, use = string.match(body, '^1|([^|]*)|(.*)$') end
    if token then
        uses[#uses + 1] = token
        uses[#uses + 1] = pending[at]
        uses[#uses + 1] = use
    else
        foreign = foreign + 1
        redis.call('hdel', KEYS[2], pending[at])
    end
end
answer[4] = text(foreign)
for _, part in ipairs(uses) do answer[#answer + 1] = part end
return answer
