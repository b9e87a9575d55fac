-- Puts back the hold of an attempt that still runs, after Redis came back without it. Its money is being spent: no cap refuses.
-- `by` does it, whose lease has the number `fence`: the worker itself, or one that takes over from it.

local by, fence, worker, attempt_id, held_nanos, keys, ends, running_keys, hold, units, held_tokens =
  unpack(cmsgpack.unpack(ARGV[1]))
units = units or {}

local refusal = not_ready(call('MGET', 'tg:epoch', 'tg:lease:' .. by), fence)
if refusal then return refusal end
if call('HEXISTS', 'tg:holds:' .. worker, attempt_id) == 1 then return {'present'} end
if call('HEXISTS', 'tg:suspense', attempt_id) == 1 then return {'present'} end

local held = {held_nanos, held_tokens or 0, 1}
for i = 1, #running_keys do call('INCR', running_keys[i]) end
add_to_counters(keys, ends, units, held)
call('HSET', 'tg:holds:' .. worker, attempt_id, join_hold(held, units, hold))
return {'ok'}
