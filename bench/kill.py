"""How long a kill switch takes: from the throw to the last byte at the client, four workers, two hundred live streams."""

import asyncio
import time
from typing import Any

from bench.rig import Rig
from bench.streams import open_streams, request

STREAMS = 200


def measure(made: Rig, headers: dict[str, str], rounds: int) -> dict[str, Any]:
    latencies_ms: list[float] = []
    for _ in range(rounds):
        latencies_ms += asyncio.run(_round(made, headers))
    latencies_ms.sort()
    return {
        "workers": len(made.workers()),
        "streams": STREAMS,
        "rounds": rounds,
        "p50_ms": round(latencies_ms[len(latencies_ms) // 2], 1),
        "p99_ms": round(latencies_ms[int(len(latencies_ms) * 0.99)], 1),
        "max_ms": round(latencies_ms[-1], 1),
    }


async def _round(made: Rig, headers: dict[str, str]) -> list[float]:
    body = '{"model": "demo", "stream": true, "messages": [{"role": "user", "content": "idle"}]}'
    streams = await open_streams(made.proxy.port, [request(body, made.secrets[0], headers) for _ in range(STREAMS)])
    flag = await asyncio.to_thread(made.control.throw, "team", made.control.team.team_id, "a drill")
    thrown_at_s = time.perf_counter()
    ended = await asyncio.gather(*(stream.ended for stream in streams))
    assert all(b"traffic_halted" in stream.received for stream in streams), "a stream ended without saying why"
    for stream in streams:
        stream.transport.close()
    await asyncio.to_thread(made.control.lift, flag)
    await asyncio.sleep(1.5)
    return [max(0.0, (at_s - thrown_at_s) * 1000) for at_s in ended]
