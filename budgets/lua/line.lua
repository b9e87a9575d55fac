-- The line before a counter that is full: each worker says of its first since when it waits, and what it needs. Whose turn it is may
-- ask next, and until it has asked nobody else is admitted.

-- Who has not said anything for so long does not wait any more: its worker died.
local SILENCE_US_MAX = 500000

local worker, attempt_id, key, cap, since_us, need = unpack(cmsgpack.unpack(ARGV[1]))

local line_key = line_of(key)
local now_us = redis_time_us()
local left = left_of(cap, call('GET', key))

local line = {{since_us, need, true}}
local told = call('HGETALL', line_key)
for i = 1, #told, 2 do
  if told[i] ~= worker and told[i] ~= TURN then
    local others_since_us, others_need, told_at_us = string.match(told[i + 1], '^(%d+) (%d+) (%d+)$')
    if tonumber(told_at_us) >= now_us - SILENCE_US_MAX then
      line[#line + 1] = {tonumber(others_since_us), tonumber(others_need), false}
    end
  end
end
table.sort(line, function(one, other) return one[1] < other[1] end)

local first_needs, is_turn = line[1][2], false
for i = 1, #line do
  local _, needs, is_own = unpack(line[i])
  if needs <= left and (i == 1 or needs * MUCH_LESS <= first_needs) then
    is_turn = is_own
    break
  end
end

call('HSET', line_key, worker, string.format('%d %d %d', since_us, need, now_us))
if is_turn then call('HSET', line_key, TURN, attempt_id) else call('HSETNX', line_key, TURN, '') end
call('PEXPIRE', line_key, SILENCE_US_MAX / 1000)
return {'ok', is_turn and 1 or 0, left}
