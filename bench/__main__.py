"""`make bench`: one machine, one run, the proxy on one core, everything else on the other. Prints a table, writes JSON.

python -m bench [--quick] [--peers] [--only PART]
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from bench import kill, peers, translate
from bench.load import Plan, Result, run
from bench.rig import OTHER_CORE, Rig, rig, server
from bench.streams import hold_idle_streams
from tests.stack import ROOT, free_port

RESULTS = Path(__file__).parent / "results.json"
TAGS = {"x-tollgate-tags": "feature=bench,customer=acme"}
KEYS_MANY = 400_000
IDLE_STREAMS = 5_000
NGINX = """
worker_processes 1; daemon off; pid {directory}/pid; error_log /dev/null;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000;
  client_body_temp_path {directory}; proxy_temp_path {directory};
  upstream model {{ server 127.0.0.1:{upstream_port}; keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""
Row = dict[str, Any]


def chat_body(prompt_bytes: int, *, stream: bool = False) -> str:
    prompt = ("All work and no play makes a gateway dull. " * (prompt_bytes // 40 + 1))[:prompt_bytes]
    fields: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": prompt}], "max_tokens": 200}
    return json.dumps({**fields, "stream": True} if stream else fields)


def measure_references(seconds: float) -> list[Row]:
    rows = []
    body = chat_body(150)
    port = free_port()
    argv = [sys.executable, "-m", "gunicorn", "-c", "proxy/gunicorn.conf.py", "bench.echo:application"]
    settings = {
        "TOLLGATE_PROXY_BIND": f"127.0.0.1:{port}",
        "TOLLGATE_PROXY_WORKERS": "1",
        "REDIS_URL": "redis://127.0.0.1:1",
        "PYTHONPATH": str(ROOT),
    }
    with server(argv, port, **settings):
        for connections in (1, 32):
            plan = Plan(port=port, path="/echo", body=body, connections=connections, seconds=seconds)
            rows.append(_row("bare ASGI echo", "150 B", connections, run(plan, OTHER_CORE)))
    upstream_port = free_port()
    upstream = subprocess.Popen(
        ["taskset", "-c", str(OTHER_CORE), sys.executable, "-m", "bench.upstream", str(upstream_port)], cwd=ROOT
    )
    try:
        rows += _measure_nginx(upstream_port, body, seconds)
    finally:
        upstream.kill()
        upstream.wait()
    return rows


def _measure_nginx(upstream_port: int, body: str, seconds: float) -> list[Row]:
    nginx = shutil.which("nginx")
    if nginx is None:
        print("nginx is not installed: no bare reverse proxy to compare with", file=sys.stderr)
        return []
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "nginx.conf"
        config.write_text(NGINX.format(directory=directory, upstream_port=upstream_port, port=port))
        with server([nginx, "-e", "/dev/null", "-c", str(config)], port):
            rows = []
            for connections in (1, 32):
                plan = Plan(port=port, path="/v1/chat/completions", body=body, connections=connections, seconds=seconds)
                rows.append(_row("nginx", "150 B", connections, run(plan, OTHER_CORE)))
            return rows


def measure_tollgate(made: Rig, seconds: float) -> list[Row]:
    rows = []
    for size, stream in ((150, False), (16 * 1024, False), (150, True)):
        body = chat_body(size, stream=stream)
        name = f"{size} B" if size < 1024 else f"{size // 1024} KB"
        what = f"{name} streamed" if stream else name
        for connections in (1, 32, 256):
            direct = Plan(
                port=made.upstream_port,
                path="/v1/chat/completions",
                body=body,
                connections=connections,
                seconds=seconds,
            )
            straight = run(direct, OTHER_CORE)
            rows.append(_row("direct", what, connections, straight))
            rows.append(_through(made, body, what, connections, seconds, straight))
    return rows


def _through(
    made: Rig, body: str, what: str, connections: int, seconds: float, straight: Result, keys: tuple[str, ...] = ()
) -> Row:
    plan = Plan(
        port=made.proxy.port,
        path="/v1/chat/completions",
        body=body,
        keys=keys or made.secrets,
        headers=TAGS,
        connections=connections,
        seconds=seconds,
    )
    run(replace(plan, seconds=0.5), OTHER_CORE)  # Warm.
    before_s = made.cpu_s()
    result = run(plan, OTHER_CORE)
    row = _row("Tollgate", what, connections, result)
    row["cpu_us_per_request"] = round((made.cpu_s() - before_s) / max(result.requests, 1) * 1e6, 1)
    row["added_p50_ms"] = round(result.p50_ms - straight.p50_ms, 3)
    row["added_p99_ms"] = round(result.p99_ms - straight.p99_ms, 3)
    if result.first_p50_ms:
        row["first_token_added_p50_ms"] = round(result.first_p50_ms - straight.first_p50_ms, 3)
    row["resident_mb"] = round(made.resident_bytes() / 1e6, 1)
    return row


def measure_keys(made: Rig, seconds: float) -> list[Row]:
    body = chat_body(150)
    direct = run(
        Plan(port=made.upstream_port, path="/v1/chat/completions", body=body, connections=32, seconds=1), OTHER_CORE
    )
    few = _through(made, body, "150 B, 100 keys", 32, seconds, direct)
    many_keys = made.issue(KEYS_MANY)
    many = _through(made, body, f"150 B, {KEYS_MANY:,} keys", 32, seconds, direct, many_keys)
    few_again = _through(made, body, "150 B, 100 keys again", 32, seconds, direct)
    return [few, many, few_again]


def _row(who: str, what: str, connections: int, result: Result) -> Row:
    return {
        "who": who,
        "what": what,
        "connections": connections,
        "per_second": round(result.per_second),
        "p50_ms": round(result.p50_ms, 3),
        "p99_ms": round(result.p99_ms, 3),
        "errors": result.errors,
        **({"first_p50_ms": round(result.first_p50_ms, 3)} if result.first_p50_ms else {}),
    }


def show(rows: list[Row]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = [[str(row.get(name, "")) for name in columns] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(columns, *table, strict=True)]
    for line in [columns, *table]:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    print(flush=True)


def machine() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "processor": model[0].split(":", 1)[1].strip() if model else platform.machine(),
        "cores": os.cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 2),
    }


PARTS = ("references", "tollgate", "translated", "keys", "idle", "kill")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a second for each case")
    parser.add_argument("--peers", action="store_true", help="other gateways too: installs them")
    parser.add_argument("--only", choices=PARTS, help="one part, without writing results.json")
    options = parser.parse_args()
    seconds = 1.0 if options.quick else 5.0
    results: dict[str, Any] = {"machine": machine()}

    def measured(part: str, rows: list[Row]) -> None:
        results[part] = rows
        print(part)
        show(rows)

    wanted = {options.only} if options.only else set(PARTS)
    if "translated" in wanted:
        measured("translated", [cost._asdict() for cost in translate.measure(500 if options.quick else 5000)])
    if "references" in wanted:
        measured("references", measure_references(seconds))
    if wanted & {"tollgate", "keys", "idle"} or options.peers:
        with rig() as made:
            if "tollgate" in wanted:
                measured("tollgate", measure_tollgate(made, seconds))
            if options.peers:
                measured("peers", peers.measure(made.upstream_port, chat_body(150), seconds))
            if "keys" in wanted:
                measured("keys", measure_keys(made, seconds))
        if "idle" in wanted:
            with rig() as made:
                measured("idle", [hold_idle_streams(made, chat_body(150, stream=True), IDLE_STREAMS, TAGS)])
    if "kill" in wanted:
        with rig(workers=4) as made:
            measured("kill", [kill.measure(made, TAGS, rounds=2 if options.quick else 10)])
    if not options.only:
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        print(f"written to {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
