-- Shared by the scripts. An amount is a whole number of nano-USD; a Lua number holds it exactly up to 2^53.

local EXACT_NANOS = 9007199254740992
-- Above 2^53 a cap and its counter are each read up to 512 nanos off, so such a cap is taken this much smaller.
local CAP_MARGIN_NANOS = 4096
-- A counter outlives its window, for workers whose clocks are behind and for settles that come late.
local COUNTER_GRACE_S = 3600
local MINUTE_US = 60000000

-- The flag of the first kill switch that is thrown, or nil.
local function thrown_flag(kill_fields)
  if #kill_fields == 0 then return nil end
  local flags = redis.call('HMGET', 'tg:kills', unpack(kill_fields))
  for i = 1, #kill_fields do
    if flags[i] then return flags[i] end
  end
end

-- The first hard budget with less than `nanos` left: its position from 0 and what it has left; nil when there is none.
local function tight_budget(budgets, spent, offset, nanos)
  for i, budget in ipairs(budgets) do
    if budget[3] then
      local cap_nanos = budget[2]
      if cap_nanos > EXACT_NANOS then cap_nanos = cap_nanos - CAP_MARGIN_NANOS end
      local left_nanos = cap_nanos - (tonumber(spent[i + offset]) or 0)
      if nanos > left_nanos then return i - 1, left_nanos end
    end
  end
end

local function add_to_counter(key, nanos, expire_at_s)
  -- Equal means that the counter may be new, and a new one needs its end.
  if redis.call('INCRBY', key, nanos) == nanos then
    redis.call('EXPIREAT', key, expire_at_s + COUNTER_GRACE_S)
  end
end

local function add_to_counters(budgets, nanos)
  if nanos == 0 then return end
  for _, budget in ipairs(budgets) do
    add_to_counter(budget[1], nanos, budget[4])
  end
end

-- A slot exists exactly as long as its hold, so a counter at nought is removed and none can go below.
local function free_slots(running_keys)
  for _, key in ipairs(running_keys) do
    if redis.call('DECR', key) <= 0 then redis.call('DEL', key) end
  end
end

-- "<held_nanos>|<rest>" → held_nanos, rest
local function cut_hold(value)
  local bar = string.find(value, '|', 1, true)
  return tonumber(string.sub(value, 1, bar - 1)), string.sub(value, bar + 1)
end

local function join_hold(held_nanos, rest)
  return string.format('%.0f|', held_nanos) .. rest
end

local function redis_time_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
