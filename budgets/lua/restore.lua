-- Puts back the hold of an attempt that still runs, after Redis came back without it. The money is being spent, so no cap refuses.

local worker, attempt_id, held_nanos, budgets, running_keys, hold = unpack(cmsgpack.unpack(ARGV[1]))

if redis.call('EXISTS', 'tg:epoch') == 0 then return {'no_epoch'} end
if redis.call('HEXISTS', 'tg:holds:' .. worker, attempt_id) == 1 then return {'present'} end
if redis.call('HEXISTS', 'tg:suspense', attempt_id) == 1 then return {'present'} end

for _, key in ipairs(running_keys) do redis.call('INCR', key) end
add_to_counters(budgets, held_nanos)
redis.call('HSET', 'tg:holds:' .. worker, attempt_id, join_hold(held_nanos, hold))
return {'ok'}
