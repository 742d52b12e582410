-- Takes tokens from buckets: KEYS are the buckets, ARGV[1] microseconds per token, ARGV[2] microseconds until an empty
-- bucket is full, ARGV[3] the number of tokens wanted from each bucket. Returns for each bucket how many were taken, and the
-- microseconds until the next token. A list of numbers is one text, which clients write and read fastest.
--
-- A bucket is one number: the server's time, in microseconds, at which it will be full again. A full bucket has no key.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local per_token, to_fill = tonumber(ARGV[1]), tonumber(ARGV[2])
-- Rounding errors in sums of fractions must not cost a whole token.
local tolerance = per_token * 1e-6
local answers = {}
local each_wanted = string.gmatch(ARGV[3], '%d+')
for _, key in ipairs(KEYS) do
  local wanted = tonumber(each_wanted())
  local recorded = tonumber(redis.call('GET', key) or now)
  -- No bucket is emptier than empty, even after the server's clock was set back or the burst was made smaller.
  local full_at = math.min(math.max(recorded, now), now + to_fill)
  local room = math.floor((now + to_fill - full_at + tolerance) / per_token)
  local taken = math.min(wanted, math.max(room, 0))
  full_at = full_at + taken * per_token
  if taken > 0 or full_at < recorded then
    -- Lua would write the number with 14 digits only.
    redis.call('SET', key, string.format('%.2f', full_at), 'PX', math.max(math.ceil((full_at - now) / 1000), 1))
  end
  local wait = math.max(math.ceil(full_at + per_token - now - to_fill), 1)
  answers[#answers + 1] = string.format('%.0f %.0f', taken, wait)
end
return table.concat(answers, ' ')
