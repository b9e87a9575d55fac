-- Holds money (tokens, requests) for one attempt in every budget, or changes nothing and says what refused.
-- `observed` has the positions of limits that only count; `clauses` what a few budgets say besides: see `gate.py`.

local worker, fence, attempt_id, kill_fields, limit_keys, capacities_ns, costs_ns, running_keys, slots, keys, caps, is_hard,
  ends, full_nanos, tranche_nanos, hold, units, full_tokens, tranche_tokens, observed, clauses =
  unpack(cmsgpack.unpack(ARGV[1]))
units, observed, clauses = units or {}, observed or {}, clauses or {}

local state = call('MGET', 'tg:epoch', 'tg:lease:' .. worker, 'tg:opening', unpack(limit_keys))
local refusal = not_ready(state, fence)
if refusal then return refusal end

local flag = thrown_flag(kill_fields)
if flag then return {'halted', flag} end

local is_observed, would_refuse = {}, {}
for i = 1, #observed do is_observed[observed[i]] = true end

local now_us = #limit_keys > 0 and redis_time_us()
local ahead, free, reset_ms = {}, {}, {}
for i = 1, #limit_keys do
  local capacity_ns = capacities_ns[i]
  local before_ns = ahead_ns(state[i + 3], now_us)
  local after_ns = before_ns + costs_ns[i]
  if after_ns > capacity_ns then
    if not is_observed[i - 1] then
      local can_fit = costs_ns[i] <= capacity_ns
      local free_ns = math.max(capacity_ns - before_ns, 0)
      return {'limited', i - 1, free_ns, can_fit and math.ceil((after_ns - capacity_ns) / 1000000) or -1}
    end
    -- What would have been refused would have taken nothing.
    would_refuse[#would_refuse + 1] = limit_keys[i]
    after_ns = before_ns
  end
  ahead[i] = after_ns
  free[i] = math.max(capacity_ns - after_ns, 0)
  reset_ms[i] = math.ceil(after_ns / 1000000)
end

if #running_keys > 0 then
  local running = call('MGET', unpack(running_keys))
  for j = 1, #running_keys do
    local i, taken = #limit_keys + j, tonumber(running[j]) or 0
    if taken >= slots[j] then
      -- Nobody knows when one of them ends: a second is a polite guess.
      if not is_observed[i - 1] then return {'limited', i - 1, 0, slots[j] > 0 and 1000 or -1} end
      would_refuse[#would_refuse + 1] = running_keys[j]
    end
    free[i], reset_ms[i] = math.max(slots[j] - taken - 1, 0), 0
  end
end

local full, tranche = {full_nanos, full_tokens or 0, 1}, {tranche_nanos, tranche_tokens or 0, 1}
local spent = read_counters(keys)
local moves, throttled = {}, {}
for c = 1, #clauses do
  local kind, position, a, b, d, e = unpack(clauses[c])
  local i = position + 1
  if kind == 'carry' then
    -- The first of a new window takes along what the last one left: from_key, from_cap, most, is_empty_when_absent.
    local from_spent = not spent[i] and tonumber(call('GET', a) or (e and 0))
    if from_spent then
      local carried = math.max(math.min(d, left_of(b, from_spent)), 0)
      spent[i] = -carried
      moves[#moves + 1] = {i, a, carried}
    end
  elseif kind == 'observe' then
    if tranche[units[i] or NANOS] > left_of(caps[i], spent[i]) then would_refuse[#would_refuse + 1] = keys[i] end
  elseif (tonumber(spent[i]) or 0) >= a then
    if kind == 'downgrade' then
      return {'downgrade', i - 1, b}
    elseif kind == 'throttle' then
      -- key, cost_ns, capacity_ns
      now_us = now_us or redis_time_us()
      local after_ns = ahead_ns(call('GET', b), now_us) + d
      if after_ns > e then return {'throttled', i - 1, math.ceil((after_ns - e) / 1000000)} end
      throttled[#throttled + 1] = {b, after_ns}
    end
  end
end

local held, index, left, is_tight = fitting(spent, caps, is_hard, units, full, tranche)
if not held then return {'over_budget', index, left} end
local before, own_line
if is_tight then before, own_line = others_before(attempt_id, keys, is_hard) end
if before then return {'over_budget', before, left_of(caps[before + 1], spent[before + 1])} end

for i = 1, #limit_keys do set_ahead(limit_keys[i], ahead[i], now_us) end
for i = 1, #running_keys do call('INCR', running_keys[i]) end
for _, one in ipairs(throttled) do set_ahead(one[1], one[2], now_us) end
for _, move in ipairs(moves) do
  local i, from_key, carried = unpack(move)
  -- Both in one step, so that the two windows together are never passed.
  call('SET', keys[i], string.format('%d', -carried), 'EXAT', ends[i] + COUNTER_GRACE_S)
  if call('INCRBY', from_key, string.format('%d', carried)) == carried then
    call('EXPIREAT', from_key, ends[i] + COUNTER_GRACE_S)
  end
end
if #would_refuse > 0 then observe(would_refuse, now_us or redis_time_us()) end
add_to_counters(keys, ends, units, held)
if own_line then call('HDEL', own_line, worker) end
call('HSET', 'tg:holds:' .. worker, attempt_id, join_hold(held, units, hold))
return {'ok', held[NANOS], free, reset_ms, held[TOKENS]}
