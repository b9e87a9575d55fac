-- Sets the worker's lease anew, and tells it all that it would otherwise have to ask for. The first beat of a connection joins: it
-- has the server's `run_id` and the workers last `known`, and its `fence`, larger than any before, is the lease's number from here on.

local worker, fence, lease_ms, status, is_in_step, run_id, known = unpack(cmsgpack.unpack(ARGV[1]))

local lease_key = 'tg:lease:' .. worker
local number = tonumber(call('GET', lease_key))
if run_id then
  if number and number >= fence then return {'no_lease'} end
elseif number ~= fence then
  return {'no_lease'}
end

local function living()
  local names, lease_keys, alive = call('HKEYS', 'tg:workers'), {}, {}
  if #names == 0 then return alive end
  for i = 1, #names do lease_keys[i] = 'tg:lease:' .. names[i] end
  local leases = call('MGET', unpack(lease_keys))
  for i = 1, #names do
    if leases[i] then alive[#alive + 1] = names[i] end
  end
  return alive
end

local function await(names)
  for _, name in ipairs(names) do call('HSETNX', 'tg:awaited', name, 0) end
end

local function are_all_back()
  for _, is_back in ipairs(call('HVALS', 'tg:awaited')) do
    if is_back == '0' then return false end
  end
  return true
end

-- The server began anew, or lost its data: it may not know all that is held. Nothing more is, until those who may hold something have
-- said so, or have cut their streams, as their leases have run out by then.
if run_id and call('GET', 'tg:run_id') ~= run_id then
  call('SET', 'tg:run_id', run_id)
  call('SET', 'tg:opening', 1, 'PX', lease_ms)
  call('DEL', 'tg:awaited')
  await(living())
end

call('SET', lease_key, string.format('%d', fence), 'PX', lease_ms)
call('HSET', 'tg:workers', worker, status)

local epoch = call('GET', 'tg:epoch')
local is_opening = call('EXISTS', 'tg:opening') == 1
if is_opening then
  await(known or {})
  -- Without an epoch nobody can say what it holds.
  if not epoch then call('PEXPIRE', 'tg:opening', lease_ms) end
  if is_in_step then
    call('HSET', 'tg:awaited', worker, 1)
    is_opening = not are_all_back()
    if not is_opening then call('DEL', 'tg:opening', 'tg:awaited') end
  end
end

local versions = call('HMGET', 'tg:versions', 'snapshot', 'keys', 'kills')
return {
  'ok',
  epoch or '',
  redis_time_us(),
  tonumber(versions[1]) or 0,
  tonumber(versions[2]) or 0,
  tonumber(versions[3]) or 0,
  tonumber(call('HGET', 'tg:applied', worker)) or 0,
  tonumber(call('HGET', 'tg:ingested', worker)) or 0,
  is_opening and 1 or 0,
  living(),
}
