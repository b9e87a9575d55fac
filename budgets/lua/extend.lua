-- Grows the hold of a running attempt, or changes nothing and says what refused.

local worker, attempt_id, add_nanos, kill_fields, budgets = unpack(cmsgpack.unpack(ARGV[1]))

local names = {'tg:epoch', 'tg:lease:' .. worker}
for _, budget in ipairs(budgets) do names[#names + 1] = budget[1] end
local values = redis.call('MGET', unpack(names))

if not values[1] then return {'no_epoch'} end
if not values[2] then return {'no_lease'} end

local flag = thrown_flag(kill_fields)
if flag then return {'halted', flag} end

local hold = redis.call('HGET', 'tg:holds:' .. worker, attempt_id)
if not hold then return {'no_hold'} end

local index, left_nanos = tight_budget(budgets, values, 2, add_nanos)
if index then return {'over_budget', index, left_nanos} end

local held_nanos, rest = cut_hold(hold)
held_nanos = held_nanos + add_nanos
add_to_counters(budgets, add_nanos)
redis.call('HSET', 'tg:holds:' .. worker, attempt_id, join_hold(held_nanos, rest))
return {'ok', held_nanos}
