"""Throw a kill switch, watch the workers acknowledge it, and lift it again when you say so."""

import argparse
import os
import sys
import time

import httpx

WAIT_S = 5.0


def main(scope: str, target: str, reason: str) -> None:
    with httpx.Client(
        base_url=f"{os.environ['TOLLGATE_URL']}/api/v1",
        headers={"Authorization": f"Bearer {os.environ['TOLLGATE_TOKEN']}"},
    ) as api:
        thrown = api.post("/kill-switches/", json={"scope": scope, "target": target, "reason": reason})
        if thrown.is_error:
            sys.exit(f"NOT halted: {thrown.json()['detail']}")
        url = f"/kill-switches/{thrown.json()['id']}/"
        print(f"Halted {scope} {target}")  # From here on no worker admits any of it.
        deadline_s = time.monotonic() + WAIT_S
        said = api.get(url).json()["acknowledgements"]
        while not said["is_complete"] and time.monotonic() < deadline_s:
            time.sleep(0.05)
            said = api.get(url).json()["acknowledgements"]
        print(f"{said['acknowledged']} of {said['expected']} workers, {said['streams_cut']} streams cut")
        input("Press Enter to lift it, Ctrl-C to leave it. ")
        api.delete(url, headers={"X-Audit-Reason": "the drill is over"}).raise_for_status()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scope", choices=["global", "team", "project", "key", "model", "provider"])
    parser.add_argument("target", nargs="?", default="")
    parser.add_argument("--reason", required=True)
    arguments = parser.parse_args()
    main(arguments.scope, arguments.target, arguments.reason)
