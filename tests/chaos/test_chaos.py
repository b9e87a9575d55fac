"""The chaos suite in short, with fixed seeds: what does not depend on how busy this machine is. `make chaos` runs all of it."""

import subprocess
import sys

import pytest

from tests.chaos import mutants
from tests.chaos.promises import PROMISES
from tests.chaos.rig import Options, Rig
from tests.stack import ROOT

# Those that stand together share a Tollgate.
SHORT = (
    ("hard_cap",),
    ("limits",),
    ("stranded",),
    ("missing_worker", "missing_redis"),
    ("retried",),
    ("redis_broken",),
    ("cancelled",),
)
BY_NAME = {promise.name: promise for promise in PROMISES}


@pytest.mark.parametrize("names", SHORT, ids=", ".join)
def test_promises_are_held(names):
    with Rig(print) as rig:
        found = BY_NAME[names[0]].run(rig, Options(is_short=True), names)
    for name in names:
        measured = found[name]
        told = f"{name}: {measured.figure} ({measured.counts}) {measured.detail}"
        print(told)
        assert measured.is_held or measured.is_only_late, told


def test_a_run_that_is_stopped_tells_what_is_over():
    command = [sys.executable, "-m", "tests.chaos", "--short", "--dry", "--only", "retried", "--only", "cancelled"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("cancelled:"):
                break
        # As Ctrl-C does, which what a shell has started in the background does not hear.
        running.terminate()
        *_, retried, cancelled = running.stdout.read().splitlines()
    assert running.returncode == 130
    assert retried.split()[:2] == ["retried", "held"]
    assert cancelled.split(maxsplit=1) == ["cancelled", "not come to, or broken"]


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: f"{mutant.promise}: {mutant.name}")
def test_the_text_that_a_mutant_breaks_is_there(mutant):
    assert mutant.promise in BY_NAME
    assert mutants.broken(mutant)


def test_every_promise_has_a_mutant():
    assert {mutant.promise for mutant in mutants.MUTANTS} == BY_NAME.keys()


@pytest.mark.parametrize("mutant", mutants.of("hard_cap")[:1], ids=lambda mutant: mutant.name)
def test_a_gate_that_is_broken_on_purpose_is_found_out(mutant):
    assert mutants.is_found(mutant)
