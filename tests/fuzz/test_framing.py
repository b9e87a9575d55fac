"""A short run of each fuzz target: enough to see that it runs, and that no parser broke. `make fuzz` goes on for longer."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("framing.py")
ROOT = HARNESS.parents[2]
RUNS = 1_500
# libFuzzer ends its process, and imports are instrumented: each target has one of its own.
TARGETS = ("sse", "event_stream", "json_lines", "json_array", "multipart", "json_gate")

pytestmark = pytest.mark.skipif(
    find_spec("atheris") is None, reason="atheris is not here: it has wheels for Linux only"
)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_that_comes_in_breaks_the_parser(target: str, tmp_path: Path) -> None:
    options = [f"-runs={RUNS}", "-seed=1", f"-artifact_prefix={tmp_path}/"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, str(HARNESS), target, *options],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-4_000:]
    assert f"Done {RUNS} runs" in run.stderr
