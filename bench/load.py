"""The load: so many connections, each asking again as soon as it has its answer, for so many seconds.

A process of its own (`python -m bench.load`), told by JSON on its standard input what to do, answering with JSON.
"""

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from tests.stack import ROOT

WRK_SCRIPT = """
local keys, turn = {{}}, 0
for key in io.lines("{keys}") do keys[#keys + 1] = key end
local before, after = {before}, {after}
request = function()
  turn = turn % #keys + 1
  return before .. keys[turn] .. after
end
done = function(summary, latency)
  local errors = summary.errors
  print(string.format(
    'RESULT {{"requests":%d,"errors":%d,"per_second":%.1f,"p50_ms":%.3f,"p99_ms":%.3f,"first_p50_ms":0,"first_p99_ms":0}}',
    summary.requests, errors.status + errors.connect + errors.read + errors.timeout,
    summary.requests / summary.duration * 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`keys` are presented in turn. Latencies are measured from the first byte written to the last byte read."""

    port: int
    path: str
    body: str
    keys: tuple[str, ...] = ("none",)
    headers: dict[str, str] = {}
    connections: int = 1
    seconds: float = 3.0


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds; `first_*` is the time to the first event of a stream."""

    requests: int
    errors: int
    per_second: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float
    first_p99_ms: float


def run(plan: Plan, core: int) -> Result:
    """In a process of its own on `core`: wrk where it is installed and can do it, since it leaves more of the core to others."""
    pinned = ["taskset", "-c", str(core)]
    wrk = shutil.which("wrk")
    if wrk is not None and '"stream": true' not in plan.body:
        return _run_wrk([*pinned, wrk], plan)
    argv = [*pinned, sys.executable, "-m", "bench.load"]
    done = subprocess.run(argv, input=msgspec.json.encode(plan), capture_output=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    return msgspec.json.decode(done.stdout, type=Result)


def _run_wrk(wrk: list[str], plan: Plan) -> Result:
    before, after = _around_key(plan)
    with tempfile.TemporaryDirectory() as directory:
        keys, script = Path(directory) / "keys", Path(directory) / "script.lua"
        keys.write_text("\n".join(plan.keys) + "\n")
        script.write_text(WRK_SCRIPT.format(keys=keys, before=_lua_string(before), after=_lua_string(after)))
        argv = [*wrk, "-t1", f"-c{plan.connections}", f"-d{max(1, round(plan.seconds))}s", "-s", str(script)]
        done = subprocess.run([*argv, f"http://127.0.0.1:{plan.port}"], capture_output=True, text=True, check=False)
    told = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not told:
        raise RuntimeError(done.stdout + done.stderr)
    return msgspec.json.decode(told[0], type=Result)


def _around_key(plan: Plan) -> tuple[bytes, bytes]:
    """The request before and after the key, ready-made."""
    body = plan.body.encode()
    more = "".join(f"{name}: {value}\r\n" for name, value in plan.headers.items())
    before = f"POST {plan.path} HTTP/1.1\r\nhost: bench\r\n{more}authorization: Bearer ".encode()
    return before, b"\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def _lua_string(text: bytes) -> str:
    return '"' + "".join(f"\\{byte:03d}" if byte in b'\r\n"\\' else chr(byte) for byte in text) + '"'


class _Times:
    def __init__(self) -> None:
        self.whole: list[float] = []
        self.first: list[float] = []
        self.errors = 0


class _Connection(asyncio.Protocol):
    def __init__(self, requests: "_Requests", times: _Times, until: float, done: "asyncio.Future[None]") -> None:
        self._requests = requests
        self._times = times
        self._until = until
        self._done = done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._ask()

    def _ask(self) -> None:
        self._began = time.perf_counter()
        if self._began >= self._until:
            self._transport.close()
            return
        self._received = b""
        self._missing: int | None = None
        self._has_first = False
        self._transport.write(self._requests.next())

    def data_received(self, data: bytes) -> None:
        if self._missing is not None:
            self._missing -= len(data)
            if self._missing <= 0:
                self._answered()
            return
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._received[:end].lower()
        at = head.find(b"content-length:")
        if at >= 0:
            length = int(head[at + 15 :].split(b"\r\n", 1)[0])
            self._missing = length - (len(self._received) - end - 4)
            if self._missing <= 0:
                self._answered()
            return
        if not self._has_first and len(self._received) > end + 4:
            self._has_first = True
            self._times.first.append(time.perf_counter() - self._began)
        if self._received.endswith(b"0\r\n\r\n") and b"[DONE]" in self._received[-200:]:
            self._answered()

    def _answered(self) -> None:
        if not self._received.startswith(b"HTTP/1.1 200"):
            self._times.errors += 1
        self._times.whole.append(time.perf_counter() - self._began)
        self._ask()

    def connection_lost(self, _error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(None)


class _Requests:
    """Ready-made requests; only the key differs."""

    def __init__(self, plan: Plan) -> None:
        self._before, self._after = _around_key(plan)
        self._keys = [key.encode() for key in plan.keys]
        self._turn = 0

    def next(self) -> bytes:
        self._turn = (self._turn + 1) % len(self._keys)
        return self._before + self._keys[self._turn] + self._after


async def _drive(plan: Plan) -> Result:
    loop = asyncio.get_running_loop()
    requests, times = _Requests(plan), _Times()
    began = time.perf_counter()
    ends: list[asyncio.Future[None]] = [loop.create_future() for _ in range(plan.connections)]
    for done in ends:
        await loop.create_connection(
            lambda done=done: _Connection(requests, times, began + plan.seconds, done), "127.0.0.1", plan.port
        )
    await asyncio.gather(*ends)
    took = time.perf_counter() - began
    return Result(
        requests=len(times.whole),
        errors=times.errors,
        per_second=len(times.whole) / took,
        p50_ms=_percentile(times.whole, 0.5),
        p99_ms=_percentile(times.whole, 0.99),
        first_p50_ms=_percentile(times.first, 0.5),
        first_p99_ms=_percentile(times.first, 0.99),
    )


def _percentile(seconds: list[float], share: float) -> float:
    if not seconds:
        return 0.0
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * share))] * 1000


if __name__ == "__main__":
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    print(json.dumps(msgspec.to_builtins(uvloop.run(_drive(asked)))))
