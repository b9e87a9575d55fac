-- Holds money for one attempt in every budget, or changes nothing and says what refused.

local worker, attempt_id, kill_fields, limits, budgets, full_nanos, tranche_nanos, hold = unpack(cmsgpack.unpack(ARGV[1]))

local names = {'tg:epoch', 'tg:lease:' .. worker}
for _, limit in ipairs(limits) do names[#names + 1] = limit[2] end
for _, budget in ipairs(budgets) do names[#names + 1] = budget[1] end
local values = redis.call('MGET', unpack(names))

if not values[1] then return {'no_epoch'} end
if not values[2] then return {'no_lease'} end

local flag = thrown_flag(kill_fields)
if flag then return {'halted', flag} end

local now_us
local remaining, reset_ms, arrivals_us = {}, {}, {}
for i, limit in ipairs(limits) do
  local kind, per_minute, cost = limit[1], limit[3], limit[4]
  if kind == 'running' then
    local free = per_minute - (tonumber(values[i + 2]) or 0)
    if free < 1 then
      -- Nobody knows when one of them ends: a second is a polite guess.
      return {'limited', i - 1, 0, per_minute < 1 and -1 or 1000}
    end
    remaining[i], reset_ms[i] = free - 1, 0
  else
    now_us = now_us or redis_time_us()
    local arrival_us = math.max(tonumber(values[i + 2]) or 0, now_us)
    local free = math.max(math.floor((now_us + MINUTE_US - arrival_us) * per_minute / MINUTE_US), 0)
    if per_minute <= 0 or cost > per_minute then return {'limited', i - 1, free, -1} end
    local taken_us = arrival_us + math.floor(cost * MINUTE_US / per_minute)
    local excess_us = taken_us - now_us - MINUTE_US
    if excess_us > 0 then return {'limited', i - 1, free, math.ceil(excess_us / 1000)} end
    arrivals_us[i] = taken_us
    remaining[i] = math.floor((now_us + MINUTE_US - taken_us) * per_minute / MINUTE_US)
    reset_ms[i] = math.ceil((taken_us - now_us) / 1000)
  end
end

local offset = 2 + #limits
local held_nanos = full_nanos
if tight_budget(budgets, values, offset, held_nanos) then
  held_nanos = tranche_nanos
  local index, left_nanos = tight_budget(budgets, values, offset, held_nanos)
  if index then return {'over_budget', index, left_nanos} end
end

for i, limit in ipairs(limits) do
  if limit[1] == 'running' then
    redis.call('INCR', limit[2])
  elseif arrivals_us[i] > now_us then
    redis.call('SET', limit[2], arrivals_us[i], 'PX', reset_ms[i])
  end
end
add_to_counters(budgets, held_nanos)
redis.call('HSET', 'tg:holds:' .. worker, attempt_id, join_hold(held_nanos, hold))
return {'ok', held_nanos, remaining, reset_ms}
