-- Sends the requests of a file, one after the other: each stands after its size in 8 digits. They
-- are whole HTTP requests, signed before, so that all that wrk does is write and read. `again` tells
-- how often the file was not long enough and was begun anew.

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  again = 0
  file = assert(io.open(args[1], "rb"))
end

function request()
  local size = file:read(8)
  if not size then
    again = again + 1
    file:seek("set")
    size = file:read(8)
  end
  return file:read(tonumber(size))
end

function done(summary)
  local e = summary.errors
  io.write(string.format(
    '{"requests":%d,"microseconds":%d,"refused":%d,"failed":%d,"again":%d}\n',
    summary.requests, summary.duration, e.status, e.connect + e.read + e.write + e.timeout,
    threads[1]:get("again")))
end
