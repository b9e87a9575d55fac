-- Resolves every hold of a dead worker. One never dispatched is given back; the others may be billed: they stay spent, in suspense.

local worker, is_dead, void_attempt_ids = unpack(cmsgpack.unpack(ARGV[1]))

if call('EXISTS', 'tg:epoch') == 0 then return {'no_epoch'} end
local lease_key = 'tg:lease:' .. worker
if is_dead then
  call('DEL', lease_key)
elseif call('EXISTS', lease_key) == 1 then
  return {'alive'}
end

local is_void = {}
for _, attempt_id in ipairs(void_attempt_ids) do is_void[attempt_id] = true end

local function append_event(event, state, cost_nanos)
  call('XADD', 'tg:usage', '*', 'worker', worker, 'seq', 0, 'event', event, 'state', state, 'cost_nanos', cost_nanos)
end

local to_suspense, voided = 0, 0
local holds_key = 'tg:holds:' .. worker
local holds = call('HGETALL', holds_key)
for i = 1, #holds, 2 do
  local attempt_id, hold = holds[i], holds[i + 1]
  local held, rest = cut_hold(hold)
  local bar = string.find(rest, '|', 1, true)
  local head, event = cjson.decode(string.sub(rest, 1, bar - 1)), string.sub(rest, bar + 1)
  free_slots(head.running)
  if is_void[attempt_id] then
    add_to_counters(head.budgets, head.ends, head.units or {}, {-held[NANOS], -held[TOKENS], -held[REQUESTS]})
    append_event(event, 'voided', 0)
    voided = voided + 1
  else
    call('HSET', 'tg:suspense', attempt_id, hold)
    append_event(event, 'suspense', held[NANOS])
    to_suspense = to_suspense + 1
  end
end
call('DEL', holds_key)
-- What it held is counted: nobody waits for it.
if is_dead and call('EXISTS', 'tg:opening') == 1 then call('HSET', 'tg:awaited', worker, 1) end
return {'ok', to_suspense, voided}
