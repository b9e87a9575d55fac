-- Holds money for one attempt in every budget, or changes nothing and says what refused.

local worker, attempt_id, kill_fields, kinds, limit_keys, rates, costs, keys, caps, is_hard, ends, full_nanos, tranche_nanos, hold =
  unpack(cmsgpack.unpack(ARGV[1]))

local state = call('MGET', 'tg:epoch', 'tg:lease:' .. worker, unpack(limit_keys))
if not state[1] then return {'no_epoch'} end
if not state[2] then return {'no_lease'} end

local flag = thrown_flag(kill_fields)
if flag then return {'halted', flag} end

local now_us
local arrivals_us, remaining, reset_ms = {}, {}, {}
for i = 1, #limit_keys do
  local per_minute, taken = rates[i], tonumber(state[i + 2]) or 0
  if kinds[i] == 'running' then
    -- Nobody knows when one of them ends: a second is a polite guess.
    if taken >= per_minute then return {'limited', i - 1, 0, per_minute > 0 and 1000 or -1} end
    remaining[i], reset_ms[i] = per_minute - taken - 1, 0
  else
    now_us = now_us or redis_time_us()
    local before_us = math.max(taken, now_us)
    local after_us = before_us + math.floor(costs[i] * MINUTE_US / per_minute)
    local free_us = now_us + MINUTE_US - after_us
    if costs[i] > per_minute or per_minute <= 0 or free_us < 0 then
      local can_fit = costs[i] <= per_minute and per_minute > 0
      local left = math.floor((now_us + MINUTE_US - before_us) * per_minute / MINUTE_US)
      return {'limited', i - 1, math.max(left, 0), can_fit and math.ceil(-free_us / 1000) or -1}
    end
    arrivals_us[i] = after_us
    remaining[i] = math.floor(free_us * per_minute / MINUTE_US)
    reset_ms[i] = math.ceil((after_us - now_us) / 1000)
  end
end

local held_nanos, index, left_nanos = fitting_nanos(keys, caps, is_hard, full_nanos, tranche_nanos)
if not held_nanos then return {'over_budget', index, left_nanos} end

for i = 1, #limit_keys do
  if arrivals_us[i] then
    set_arrival(limit_keys[i], arrivals_us[i], now_us)
  else
    call('INCR', limit_keys[i])
  end
end
add_to_counters(keys, ends, held_nanos)
call('HSET', 'tg:holds:' .. worker, attempt_id, join_hold(held_nanos, hold))
return {'ok', held_nanos, remaining, reset_ms}
