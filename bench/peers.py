"""Other gateways on the same upstream, the same core, the same load: LiteLLM's proxy and Portkey's gateway.

They are installed into a directory of their own, from PyPI and npm, and are compared as they come: one worker, a master key
where there is one, and neither budgets nor a ledger, which need more than they bring.
"""

import json
import shutil
import subprocess
import sys
from typing import Any

from msgspec.structs import replace

from bench.load import Plan, run
from bench.rig import OTHER_CORE, server
from tests.stack import ROOT, free_port

HOME = ROOT / "var" / "bench-peers"
MASTER_KEY = "sk-bench-master-key"


def measure(upstream_port: int, body: str, seconds: float) -> list[dict[str, Any]]:
    HOME.mkdir(parents=True, exist_ok=True)
    return [*_litellm(upstream_port, body, seconds), *_portkey(upstream_port, body, seconds)]


def _litellm(upstream_port: int, body: str, seconds: float) -> list[dict[str, Any]]:
    environment = HOME / "litellm"
    program = environment / "bin" / "litellm"
    if not program.exists():
        print("installing LiteLLM …", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([environment / "bin" / "pip", "install", "--quiet", "litellm[proxy]"], check=True)
    config = HOME / "litellm.yaml"
    model = {"model": "openai/bench", "api_base": f"http://127.0.0.1:{upstream_port}/v1", "api_key": "none"}
    config.write_text(
        json.dumps(
            {
                "model_list": [{"model_name": "demo", "litellm_params": model}],
                "general_settings": {"master_key": MASTER_KEY},
            }
        )
    )
    port = free_port()
    argv = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    with server(argv, port, LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_LOG="ERROR", LITELLM_TELEMETRY="False"):
        return _measure("LiteLLM", Plan(port=port, path="/v1/chat/completions", body=body, keys=(MASTER_KEY,)), seconds)


def _portkey(upstream_port: int, body: str, seconds: float) -> list[dict[str, Any]]:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        print("npm is not installed: Portkey's gateway is left out", file=sys.stderr)
        return []
    folder = HOME / "portkey"
    program = folder / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if not program.exists():
        print("installing Portkey's gateway …", file=sys.stderr, flush=True)
        folder.mkdir(exist_ok=True)
        subprocess.run([npm, "install", "--silent", "--prefix", folder, "@portkey-ai/gateway"], check=True)
    port = free_port()
    headers = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"http://127.0.0.1:{upstream_port}/v1"}
    with server([node, str(program), f"--port={port}", "--headless"], port):
        plan = Plan(port=port, path="/v1/chat/completions", body=body, headers=headers)
        return _measure("Portkey", plan, seconds)


def _measure(who: str, plan: Plan, seconds: float) -> list[dict[str, Any]]:
    rows = []
    for connections in (1, 32):
        run(replace(plan, connections=connections, seconds=1.0), OTHER_CORE)  # Warm.
        result = run(replace(plan, connections=connections, seconds=seconds), OTHER_CORE)
        rows.append(
            {
                "who": who,
                "connections": connections,
                "per_second": round(result.per_second, 1),
                "p50_ms": round(result.p50_ms, 2),
                "p99_ms": round(result.p99_ms, 2),
                "errors": result.errors,
            }
        )
    return rows
