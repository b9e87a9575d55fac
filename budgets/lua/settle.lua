-- Replaces the hold of an attempt by its cost, frees its slots and appends its usage event. Applied once, in the order of `seq`.
-- `kept_hold`: the provider goes on with it, so it stays in suspense at this cost, as a job, until a late settle says what it was.
-- `is_late` is such a settle: of what is in suspense, and where nothing is, somebody else was first and only `seq` counts.

local worker, seq, attempt_id, cost_nanos, keys, ends, tpm_keys, rates, deltas, running_keys, event, kept_hold, is_late =
  unpack(cmsgpack.unpack(ARGV[1]))

if call('EXISTS', 'tg:epoch') == 0 then return {'no_epoch'} end

local applied_seq = tonumber(call('HGET', 'tg:applied', worker)) or 0
if seq <= applied_seq then return {'duplicate', applied_seq} end
if seq > applied_seq + 1 then return {'gap', applied_seq} end

-- In suspense when its worker was taken for dead; nowhere when it was lost with Redis, and then nothing is held.
local held_nanos = 0
local holds_key = 'tg:holds:' .. worker
local hold = call('HGET', holds_key, attempt_id)
local was_running = hold and true
if not hold then
  holds_key = 'tg:suspense'
  hold = call('HGET', holds_key, attempt_id)
end
if is_late and not hold then
  call('HSET', 'tg:applied', worker, seq)
  return {'ok', 0}
end
if hold then
  held_nanos = cut_hold(hold)
  call('HDEL', holds_key, attempt_id)
end
if is_late then call('ZREM', 'tg:jobs', attempt_id) end

-- Slots and tokens are there only while the hold is: reaping it, or losing it, has given them back.
if was_running then
  free_slots(running_keys)
  for i = 1, #tpm_keys do
    if rates[i] > 0 and deltas[i] ~= 0 then
      local now_us = redis_time_us()
      local before_us = math.max(tonumber(call('GET', tpm_keys[i])) or 0, now_us)
      set_arrival(tpm_keys[i], before_us + math.floor(deltas[i] * MINUTE_US / rates[i]), now_us)
    end
  end
end

add_to_counters(keys, ends, cost_nanos - held_nanos)
if kept_hold and kept_hold ~= '' then
  call('HSET', 'tg:suspense', attempt_id, join_hold(cost_nanos, kept_hold))
  call('ZADD', 'tg:jobs', 0, attempt_id)
end
call('XADD', 'tg:usage', '*', 'worker', worker, 'seq', seq, 'event', event)
call('HSET', 'tg:applied', worker, seq)
return {'ok', held_nanos}
