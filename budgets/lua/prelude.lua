-- Shared by the scripts. An amount is a whole number of its budget's unit; a Lua number holds it exactly up to 2^53.
-- Budgets come as columns (keys, caps, is_hard, ends): Redis unpacks a few flat lists faster than many small ones. `units` has
-- what each counts, and is empty where all count money. Amounts are lists by unit: {nano-USD, tokens, requests}. `AMPLE_PARTS` and
-- `MUCH_LESS` come from `gate.py`, since the lines that workers keep follow them too.

local NANOS, TOKENS, REQUESTS = 1, 2, 3
local EXACT_MAX = 9007199254740992
-- Above 2^53 a cap and its counter are each read up to 512 off, so such a cap is taken this much smaller.
local CAP_MARGIN = 4096
-- A counter outlives its window, for workers whose clocks are behind and for settles that come late.
local COUNTER_GRACE_S = 3600
local DAY_S = 86400
local OBSERVED_KEPT_S = 28 * DAY_S

local call = redis.call

-- Why nothing may be held now, or nil. `state` has the epoch, the lease of whoever asks, and whether the gate is opening. A lease
-- has a number, larger with each connection of its worker: what does not carry it comes late, of one that was given up.
local function not_ready(state, fence)
  if not state[1] then return {'no_epoch'} end
  if tonumber(state[2]) ~= fence then return {'no_lease'} end
  if state[3] then return {'opening'} end
end

-- The flag of the first kill switch that is thrown, or nil.
local function thrown_flag(kill_fields)
  if #kill_fields == 0 or call('EXISTS', 'tg:kills') == 0 then return nil end
  local flags = call('HMGET', 'tg:kills', unpack(kill_fields))
  for i = 1, #kill_fields do
    if flags[i] then return flags[i] end
  end
end

-- What counters hold now, by position: text, or false where there is none.
local function read_counters(keys)
  if #keys == 0 then return {} end
  return call('MGET', unpack(keys))
end

local function left_of(cap, spent)
  if cap > EXACT_MAX then cap = cap - CAP_MARGIN end
  return cap - (tonumber(spent) or 0)
end

-- The larger of two amounts that every hard budget has room for. Without room for either: nil, the position (from 0) of the
-- first budget that refuses, and what it has left. At last, whether room is tight in any. The larger one is taken only where room is
-- ample: long holds must not fill up a cap that is hardly spent.
local function fitting(spent, caps, is_hard, units, full, tranche)
  local chosen, is_tight = full, false
  for i = 1, #caps do
    if is_hard[i] then
      local cap, unit = caps[i], units[i] or NANOS
      if cap > EXACT_MAX then cap = cap - CAP_MARGIN end
      local left = cap - (tonumber(spent[i]) or 0)
      if tranche[unit] > left then return nil, i - 1, left end
      if full[unit] * AMPLE_PARTS > left then
        is_tight = true
        if full[unit] > tranche[unit] then chosen = tranche end
      end
    end
  end
  return chosen, nil, nil, is_tight
end

-- Who waits for room in a counter, by worker, and the attempt whose turn it is: see `line.lua`.
local TURN = 'turn'
local function line_of(key) return 'tg:line:' .. key end

-- The position (from 0) of the first hard budget that others wait for room in, or nil; nil too for whom it is the turn, and then the
-- line that it stands in.
local function others_before(attempt_id, keys, is_hard)
  local lines, first = {}, nil
  for i = 1, #keys do lines[i] = line_of(keys[i]) end
  if call('EXISTS', unpack(lines)) == 0 then return nil end
  for i = 1, #keys do
    local turn = is_hard[i] and call('HGET', lines[i], TURN)
    if turn == attempt_id then return nil, lines[i] end
    if turn and not first then first = i - 1 end
  end
  return first
end

local function add_to_counters(keys, ends, units, amounts)
  local nanos = amounts[NANOS]
  local formatted = string.format('%d', nanos)
  for i = 1, #keys do
    local amount, text = nanos, formatted
    if units[i] and units[i] ~= NANOS then
      amount = amounts[units[i]]
      text = string.format('%d', amount)
    end
    -- Equal means that the counter may be new, and a new one needs its end.
    if amount ~= 0 and call('INCRBY', keys[i], text) == amount then
      call('EXPIREAT', keys[i], ends[i] + COUNTER_GRACE_S)
    end
  end
end

-- A slot is taken exactly as long as its hold exists, so a counter at nought is removed and none goes below.
local function free_slots(running_keys)
  for i = 1, #running_keys do
    if call('DECR', running_keys[i]) <= 0 then call('DEL', running_keys[i]) end
  end
end

-- Limits count by the rule of `limits.py`: "<ahead_ns> <written_at_us>", by how long what was taken is ahead of what has flowed
-- back, and when that was so.
local function ahead_ns(state, now_us)
  if not state then return 0 end
  local ahead, written_at_us = string.match(state, '^(%d+) (%d+)$')
  if not ahead then return 0 end
  return math.max(ahead - math.max(now_us - written_at_us, 0) * 1000, 0)
end

local function set_ahead(key, ahead, now_us)
  if ahead > 0 then
    call('SET', key, string.format('%d %d', ahead, now_us), 'PX', math.ceil(ahead / 1000000))
  else
    call('DEL', key)
  end
end

-- A hold is "<nanos>|<rest>", or "<nanos>,<tokens>|<rest>" where a budget counts tokens or requests.
local function cut_hold(value)
  local bar = string.find(value, '|', 1, true)
  local nanos, tokens = string.match(string.sub(value, 1, bar - 1), '^(%d+),?(%d*)$')
  return {tonumber(nanos), tonumber(tokens) or 0, 1}, string.sub(value, bar + 1)
end

local function join_hold(amounts, units, rest)
  if #units == 0 then return string.format('%d|', amounts[NANOS]) .. rest end
  return string.format('%d,%d|', amounts[NANOS], amounts[TOKENS]) .. rest
end

-- Observed rules would have refused, at these counters. By rule and not by counter, and each day in a hash of its own, so that it
-- never fills; the total is of all days, and only grows.
local function observe(keys, now_us)
  local start_s = math.floor(now_us / 1000000 / DAY_S) * DAY_S
  local day = string.format('tg:observed:%d', start_s)
  for i = 1, #keys do call('HINCRBY', day, string.match(keys[i], '^tg:%a+:([^:]+)'), 1) end
  call('EXPIREAT', day, start_s + OBSERVED_KEPT_S)
  call('INCRBY', 'tg:observed_total', #keys)
end

local function redis_time_us()
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end
