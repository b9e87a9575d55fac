-- Grows the hold of a running attempt, or changes nothing and says what refused.

local worker, attempt_id, add_nanos, kill_fields, keys, caps, is_hard, ends = unpack(cmsgpack.unpack(ARGV[1]))

local state = call('MGET', 'tg:epoch', 'tg:lease:' .. worker)
if not state[1] then return {'no_epoch'} end
if not state[2] then return {'no_lease'} end

local flag = thrown_flag(kill_fields)
if flag then return {'halted', flag} end

local hold = call('HGET', 'tg:holds:' .. worker, attempt_id)
if not hold then return {'no_hold'} end

local fitting, index, left_nanos = fitting_nanos(keys, caps, is_hard, add_nanos, add_nanos)
if not fitting then return {'over_budget', index, left_nanos} end

local held_nanos, rest = cut_hold(hold)
held_nanos = held_nanos + add_nanos
add_to_counters(keys, ends, add_nanos)
call('HSET', 'tg:holds:' .. worker, attempt_id, join_hold(held_nanos, rest))
return {'ok', held_nanos}
