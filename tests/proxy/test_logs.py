"""The log: JSON lines, and no secret in any of them, wherever it was put."""

import json
import subprocess
import sys

import pytest

from proxy.logs import REDACTED, scrub

PROGRAM = """
import logging, structlog
from proxy.logs import configure
configure()
secret = "tg-abcdefghijklmnopqrstuvwxyz012345"
structlog.get_logger().info("told", key=secret)
logging.getLogger("other").warning("told %s", secret)
try:
    raise ValueError("no good: " + secret)
except ValueError:
    structlog.get_logger().exception("failed")
"""


def test_every_line_is_json_and_shows_no_secret():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in run.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["told", f"told {REDACTED}", "failed"]
    assert "Traceback" in lines[2]["exception"]
    assert "abcdefghijklmnop" not in run.stderr


@pytest.mark.parametrize("secret", ["sk-proj-abcdefgh12345", "tgapi-0123456789abcdef", "gsk-aaaaaaaaaaaa"])
def test_provider_keys_and_tokens_are_known(secret):
    assert scrub(f"x {secret} y") == f"x {REDACTED} y"


def test_whatever_is_borne_is_scrubbed():
    assert scrub("authorization: Bearer abc.def") == f"authorization: Bearer {REDACTED}"
