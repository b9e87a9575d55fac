-- Grows the hold of a running attempt, or changes nothing and says what refused.

local worker, fence, attempt_id, add_nanos, kill_fields, keys, caps, is_hard, ends, units, add_tokens =
  unpack(cmsgpack.unpack(ARGV[1]))
units = units or {}

local refusal = not_ready(call('MGET', 'tg:epoch', 'tg:lease:' .. worker, 'tg:opening'), fence)
if refusal then return refusal end

local flag = thrown_flag(kill_fields)
if flag then return {'halted', flag} end

local hold = call('HGET', 'tg:holds:' .. worker, attempt_id)
if not hold then return {'no_hold'} end

local add = {add_nanos, add_tokens or 0, 0}
local fits, index, left = fitting(read_counters(keys), caps, is_hard, units, add, add)
if not fits then return {'over_budget', index, left} end

local held, rest = cut_hold(hold)
held[NANOS], held[TOKENS] = held[NANOS] + add[NANOS], held[TOKENS] + add[TOKENS]
add_to_counters(keys, ends, units, add)
call('HSET', 'tg:holds:' .. worker, attempt_id, join_hold(held, units, rest))
return {'ok', held[NANOS], held[TOKENS]}
