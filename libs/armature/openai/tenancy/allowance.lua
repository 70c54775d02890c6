-- `allowance.py` for many tenants at once, where all gateways meet.
-- KEYS: one hash per tenant: requests, tokens, since, and per gateway how many requests it serves and until when it is
-- believed. ARGV: now_s (0: this server's clock), lease_s, gateway; then per tenant its three limits, how many requests
-- the gateway serves for it, and how many operations follow, each a kind and a number of tokens: 1 admits, 0 gives back.
-- Answers per operation: the limit in the way (0: none), requests and tokens left, seconds until there is enough.
local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local lease, gateway = tonumber(ARGV[2]), 'at ' .. ARGV[3]
local position, answers = 4, {}

local function argument()
  position = position + 1
  return tonumber(ARGV[position - 1])
end

for _, key in ipairs(KEYS) do
  local max_requests, max_tokens, max_concurrent = argument(), argument(), argument()
  local own, operations, others = argument(), argument(), 0
  local full_requests, full_tokens = max_requests, max_tokens
  if max_requests == 0 then full_requests = 1e300 end
  if max_tokens == 0 then full_tokens = 1e300 end
  local requests, tokens, since = full_requests, full_tokens, now
  local held = redis.call('HGETALL', key)
  for i = 1, #held, 2 do
    local name, value = held[i], held[i + 1]
    if name == 'requests' then requests = tonumber(value)
    elseif name == 'tokens' then tokens = tonumber(value)
    elseif name == 'since' then since = tonumber(value)
    elseif name ~= gateway then
      local count, ends = string.match(value, '^(%S+) (%S+)$')
      if tonumber(ends) > now then others = others + tonumber(count) else redis.call('HDEL', key, name) end
    end
  end
  local minutes = math.max(0, now - since) / 60
  requests = math.min(full_requests, requests + minutes * max_requests)
  tokens = math.min(full_tokens, tokens + minutes * max_tokens)
  for _ = 1, operations do
    local kind, amount, denied_by, wait = argument(), argument(), 0, 0
    if kind == 0 then
      tokens = math.min(full_tokens, tokens + amount)
    elseif max_concurrent > 0 and own + others >= max_concurrent then
      denied_by = 3
    elseif max_requests > 0 and requests < 1 - 0.000001 then
      denied_by, wait = 1, (1 - requests) * 60 / max_requests
    elseif max_tokens > 0 and tokens < math.min(amount, max_tokens) - 0.000001 then
      denied_by, wait = 2, (math.min(amount, max_tokens) - tokens) * 60 / max_tokens
    else
      own = own + 1
      if max_requests > 0 then requests = requests - 1 end
      if max_tokens > 0 then tokens = tokens - amount end
    end
    answers[#answers + 1] = string.format('%d %.17g %.17g %.17g', denied_by, requests, tokens, wait)
  end
  redis.call('HSET', key, 'requests', string.format('%.17g', requests), 'tokens', string.format('%.17g', tokens),
    'since', string.format('%.17g', math.max(since, now)), gateway, string.format('%d %.17g', own, now + lease))
  local until_full = 60
  if max_tokens > 0 then until_full = (max_tokens - tokens) * 60 / max_tokens end
  redis.call('EXPIRE', key, math.ceil(math.max(until_full, 60, lease)))
end
return answers
