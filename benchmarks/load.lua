-- wrk's script: asks many models, in turn or by Zipf's law, and checks that every answer is a 200.
-- Arguments: path format, number of models, "robin", "zipf" or "zipf0.8", Content-Type, file with the body, seed, file with a line
-- of further header fields for each model, separated by tabs.

local threads = {}
local requests, order, length, position = {}, {}, 0, 0

-- Read from the main thread at the end: they must be global.
bad_count, bad_status, bad_body = 0, 0, ""

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  local path, count, law, seed = args[1], tonumber(args[2]), args[3], tonumber(args[6])
  local file = assert(io.open(args[5], "rb"))
  local body = file:read("*a")
  file:close()
  math.randomseed(seed)
  local exponent = law:match("^zipf(.*)$")
  order = exponent and zipf(count, tonumber(exponent) or 1) or in_turn(count)
  length = #order
  local is_asked = {}
  for _, model in ipairs(order) do is_asked[model] = true end
  local lines = assert(io.open(args[7], "r"))
  for model = 1, count do  -- of a million, most are never asked
    local line = lines:read("*l") or ""
    if is_asked[model] then
      local headers = { ["Content-Type"] = args[4] }
      for name, value in line:gmatch("([^\t:]+): ([^\t]*)") do headers[name] = value end
      requests[model] = wrk.format("POST", path:format(model - 1), headers, body)
    end
  end
  lines:close()
end

function in_turn(count)
  local turns = {}
  for model = 1, count do turns[model] = model end
  return turns
end

-- 200,000 models drawn with a chance of 1/rank^exponent; who has which rank is drawn too.
function zipf(count, exponent)
  local ranked = in_turn(count)
  for rank = count, 2, -1 do
    local other = math.random(rank)
    ranked[rank], ranked[other] = ranked[other], ranked[rank]
  end
  local sums, sum = {}, 0
  for rank = 1, count do
    sum = sum + 1 / rank ^ exponent
    sums[rank] = sum
  end
  local drawn = {}
  for number = 1, 200000 do
    local point, low, high = math.random() * sum, 1, count
    while low < high do
      local middle = math.floor((low + high) / 2)
      if sums[middle] < point then low = middle + 1 else high = middle end
    end
    drawn[number] = ranked[low]
  end
  return drawn
end

function request()
  position = position % length + 1
  return requests[order[position]]
end

function response(status, headers, body)
  if status ~= 200 then
    bad_count, bad_status, bad_body = bad_count + 1, status, body:sub(1, 300)
  end
end

function done(summary, latency)
  local bad = 0
  for _, thread in ipairs(threads) do
    bad = bad + thread:get("bad_count")
    if thread:get("bad_count") > 0 then
      io.write(("\nBAD %d %s\n"):format(thread:get("bad_status"), thread:get("bad_body"):gsub("%c", " ")))
    end
  end
  local errors = summary.errors
  io.write(('\nJSON {"requests": %d, "secs": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "bad": %d, "broken": %d}\n'):format(
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000, bad,
    errors.connect + errors.read + errors.write + errors.timeout))
end
