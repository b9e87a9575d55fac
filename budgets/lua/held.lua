-- Whether any attempt of any worker holds something in a counter, but `attempt_id`, which asks. Of a worker with many attempts a
-- sample is looked at: whoever is told that nobody does is refused, and nobody is harmed.

local SAMPLE = 100

local key, attempt_id = unpack(cmsgpack.unpack(ARGV[1]))

-- As it stands in the head of a hold.
local quoted = '"' .. key .. '"'
for _, worker in ipairs(call('HKEYS', 'tg:workers')) do
  local holds = call('HRANDFIELD', 'tg:holds:' .. worker, SAMPLE, 'WITHVALUES')
  for i = 1, #holds, 2 do
    if holds[i] ~= attempt_id and string.find(holds[i + 1], quoted, 1, true) then return {'ok', 1} end
  end
end
return {'ok', 0}
