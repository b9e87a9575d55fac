-- Replaces the hold of an attempt by its cost, frees its slots and appends its usage event. Applied once, in the order of `seq`.

local worker, seq, attempt_id, cost_nanos, budgets, tpm, running_keys, event = unpack(cmsgpack.unpack(ARGV[1]))

if redis.call('EXISTS', 'tg:epoch') == 0 then return {'no_epoch'} end

local applied_seq = tonumber(redis.call('HGET', 'tg:applied', worker)) or 0
if seq <= applied_seq then return {'duplicate', applied_seq} end
if seq > applied_seq + 1 then return {'gap', applied_seq} end

local holds_key = 'tg:holds:' .. worker
local held_nanos = 0
local hold = redis.call('HGET', holds_key, attempt_id)
if hold then
  held_nanos = cut_hold(hold)
  redis.call('HDEL', holds_key, attempt_id)
  -- The slots and the tokens charged are there only while the hold is: reaping or losing it has given them back.
  free_slots(running_keys)
  local now_us = #tpm > 0 and redis_time_us()
  for _, correction in ipairs(tpm) do
    local key, per_minute, delta_tokens = correction[1], correction[2], correction[3]
    if per_minute > 0 and delta_tokens ~= 0 then
      local arrival_us = math.max(tonumber(redis.call('GET', key)) or 0, now_us)
      arrival_us = arrival_us + math.floor(delta_tokens * MINUTE_US / per_minute)
      if arrival_us > now_us then
        redis.call('SET', key, arrival_us, 'PX', math.ceil((arrival_us - now_us) / 1000))
      else
        redis.call('DEL', key)
      end
    end
  end
else
  hold = redis.call('HGET', 'tg:suspense', attempt_id)
  if hold then
    held_nanos = cut_hold(hold)
    redis.call('HDEL', 'tg:suspense', attempt_id)
  end
end

add_to_counters(budgets, cost_nanos - held_nanos)
redis.call('XADD', 'tg:usage', '*', 'worker', worker, 'seq', seq, 'event', event)
redis.call('HSET', 'tg:applied', worker, seq)
return {'ok', held_nanos}
