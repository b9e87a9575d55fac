-- Replaces the hold of an attempt by its cost, frees its slots and appends its usage event. Applied once, in the order of `seq`.
-- `kept_hold`: the provider goes on with it, so it stays in suspense at this cost, as a job, until a late settle says what it was.
-- `is_late` is such a settle: of what is in suspense, and where nothing is, somebody else was first and only `seq` counts.
-- `tokens` and `requests` are what it counts in budgets of these units. `rates` is empty: deltas are nanoseconds of the limit. In
-- journals of old they are tokens, of limits of so many in a minute.

local worker, seq, attempt_id, cost_nanos, keys, ends, limit_keys, rates, deltas, running_keys, event, kept_hold, is_late,
  units, tokens, requests = unpack(cmsgpack.unpack(ARGV[1]))
units = units or {}

if call('EXISTS', 'tg:epoch') == 0 then return {'no_epoch'} end

local applied_seq = tonumber(call('HGET', 'tg:applied', worker)) or 0
if seq <= applied_seq then return {'duplicate', applied_seq} end
if seq > applied_seq + 1 then return {'gap', applied_seq} end

-- In suspense when its worker was taken for dead; nowhere when it was lost with Redis, and then nothing is held.
local held = {0, 0, 0}
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
  held = cut_hold(hold)
  call('HDEL', holds_key, attempt_id)
end
if is_late then call('ZREM', 'tg:jobs', attempt_id) end

-- Slots and tokens are there only while the hold is: reaping it, or losing it, has given them back.
if was_running then
  free_slots(running_keys)
  local now_us = #limit_keys > 0 and redis_time_us()
  for i = 1, #limit_keys do
    local delta_ns = rates[i] and math.floor(deltas[i] * 60000000000 / math.max(rates[i], 1)) or deltas[i]
    if delta_ns ~= 0 then
      set_ahead(limit_keys[i], ahead_ns(call('GET', limit_keys[i]), now_us) + delta_ns, now_us)
    end
  end
end

local cost = {cost_nanos, tokens or 0, requests or 0}
add_to_counters(keys, ends, units, {
  cost[NANOS] - held[NANOS], cost[TOKENS] - held[TOKENS], cost[REQUESTS] - held[REQUESTS],
})
if kept_hold and kept_hold ~= '' then
  call('HSET', 'tg:suspense', attempt_id, join_hold(cost, units, kept_hold))
  call('ZADD', 'tg:jobs', 0, attempt_id)
end
call('XADD', 'tg:usage', '*', 'worker', worker, 'seq', seq, 'event', event)
call('HSET', 'tg:applied', worker, seq)
return {'ok', held[NANOS]}
