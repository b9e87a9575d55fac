-- Sets the worker's lease anew, and tells it all that it would otherwise have to ask for.

local worker, lease_ms, status = unpack(cmsgpack.unpack(ARGV[1]))

local lease_was_alive = call('SET', 'tg:lease:' .. worker, '1', 'PX', lease_ms, 'GET') and 1 or 0
call('HSET', 'tg:workers', worker, status)

local versions = call('HMGET', 'tg:versions', 'snapshot', 'keys', 'kills')
return {
  'ok',
  lease_was_alive,
  call('GET', 'tg:epoch') or '',
  redis_time_us(),
  tonumber(versions[1]) or 0,
  tonumber(versions[2]) or 0,
  tonumber(versions[3]) or 0,
  tonumber(call('HGET', 'tg:applied', worker)) or 0,
  tonumber(call('HGET', 'tg:ingested', worker)) or 0,
}
