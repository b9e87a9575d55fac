"""An example, run as a reader would run it: against the demo. The others are in `test_sdks.py`."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_openai_example_runs(tollgate):
    facts = tollgate.facts
    environ = {
        **os.environ,
        "TOLLGATE_URL": facts["gateway_url"].removesuffix("/v1"),
        "TOLLGATE_KEY": facts["virtual_key"],
        "TOLLGATE_MODEL": facts["model"],
    }
    done = subprocess.run(
        [sys.executable, EXAMPLES / "openai" / "chat.py"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    assert facts["model"] in printed["Models"]
    assert float(printed["Cost"].split()[0].lstrip("$")) > 0
    assert "out" in printed["Usage"]
    assert printed["Unknown model"].startswith(" 404 model_not_found")
