-- Puts back the hold of an attempt that still runs, after Redis came back without it. Its money is being spent: no cap refuses.
-- `by` does it, whose lease has the number `fence`: the worker itself, or one that takes over from it.

local by, fence, worker, attempt_id, held_nanos, keys, ends, running_keys, hold, units, held_tokens =
  unpack(cmsgpack.unpack(ARGV[1]))
units = units or {}

local refusal = not_ready(call('MGET', 'tg:epoch', 'tg:lease:' .. by), fence)
if refusal then return refusal end
if call('HEXISTS', 'tg:suspense', attempt_id) == 1 then return {'present'} end

local holds_key, held, missing = 'tg:holds:' .. worker, {held_nanos, held_tokens or 0, 1}, nil
local stored = call('HGET', holds_key, attempt_id)
if stored then
  -- What it was extended by may be lost all the same.
  local has = cut_hold(stored)
  for unit = 1, #held do held[unit] = math.max(held[unit], has[unit]) end
  missing = {held[NANOS] - has[NANOS], held[TOKENS] - has[TOKENS], 0}
  if missing[NANOS] == 0 and missing[TOKENS] == 0 then return {'present'} end
else
  missing = held
  for i = 1, #running_keys do call('INCR', running_keys[i]) end
end
add_to_counters(keys, ends, units, missing)
call('HSET', holds_key, attempt_id, join_hold(held, units, hold))
return {'ok'}
