-- Shared by the scripts. An amount is a whole number of nano-USD; a Lua number holds it exactly up to 2^53.
-- Budgets come as columns (keys, caps, is_hard, ends): Redis unpacks a few flat lists faster than many small ones.

local EXACT_NANOS = 9007199254740992
-- Above 2^53 a cap and its counter are each read up to 512 nanos off, so such a cap is taken this much smaller.
local CAP_MARGIN_NANOS = 4096
-- A counter outlives its window, for workers whose clocks are behind and for settles that come late.
local COUNTER_GRACE_S = 3600
local MINUTE_US = 60000000

local call = redis.call

-- The flag of the first kill switch that is thrown, or nil.
local function thrown_flag(kill_fields)
  if #kill_fields == 0 or call('EXISTS', 'tg:kills') == 0 then return nil end
  local flags = call('HMGET', 'tg:kills', unpack(kill_fields))
  for i = 1, #kill_fields do
    if flags[i] then return flags[i] end
  end
end

-- The larger of two amounts that every hard budget has room for. Without room for either: nil, the position (from 0) of the
-- first budget that refuses, and what it has left.
local function fitting_nanos(keys, caps, is_hard, full_nanos, tranche_nanos)
  if #keys == 0 then return full_nanos end
  local spent = call('MGET', unpack(keys))
  local fitting = full_nanos
  for i = 1, #keys do
    if is_hard[i] then
      local cap_nanos = caps[i]
      if cap_nanos > EXACT_NANOS then cap_nanos = cap_nanos - CAP_MARGIN_NANOS end
      local left_nanos = cap_nanos - (tonumber(spent[i]) or 0)
      if tranche_nanos > left_nanos then return nil, i - 1, left_nanos end
      if full_nanos > left_nanos then fitting = tranche_nanos end
    end
  end
  return fitting
end

local function add_to_counters(keys, ends, nanos)
  if nanos == 0 then return end
  local amount = string.format('%d', nanos)
  for i = 1, #keys do
    -- Equal means that the counter may be new, and a new one needs its end.
    if call('INCRBY', keys[i], amount) == nanos then
      call('EXPIREAT', keys[i], ends[i] + COUNTER_GRACE_S)
    end
  end
end

-- A slot is taken exactly as long as its hold exists, so a counter at nought is removed and none goes below.
local function free_slots(running_keys)
  for i = 1, #running_keys do
    if call('DECR', running_keys[i]) <= 0 then call('DEL', running_keys[i]) end
  end
end

-- Limits count by the rule of `limits.py`: the time at which all that was taken will have flowed back.
local function set_arrival(key, arrival_us, now_us)
  if arrival_us > now_us then
    call('SET', key, arrival_us, 'PX', math.ceil((arrival_us - now_us) / 1000))
  else
    call('DEL', key)
  end
end

-- "<held_nanos>|<rest>" → held_nanos, rest
local function cut_hold(value)
  local bar = string.find(value, '|', 1, true)
  return tonumber(string.sub(value, 1, bar - 1)), string.sub(value, bar + 1)
end

local function join_hold(held_nanos, rest)
  return string.format('%d|', held_nanos) .. rest
end

local function redis_time_us()
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end
