"""Any order of steps: the gate's scripts against their model, a million of them (`tests/budgets/test_gate_property.py`)."""

import itertools
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from tests.budgets.test_gate_property import machine
from tests.chaos.progress import Progress
from tests.chaos.rig import Measured, Options, Rig, alone

SETTINGS = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
)


def run(rig: Rig, options: Options) -> Measured:
    """A process and a Redis for each core; each goes on, seed after seed, until all together have done their steps."""
    steps = options.calls_of(short=4_000, full=1_000_000)
    processes = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    done: Synchronized[int] = context.Value("q", 0)
    with tempfile.TemporaryDirectory(prefix="tg-model-") as directory:
        reports = [Path(directory) / str(number) for number in range(processes)]
        children = [
            context.Process(
                target=explore,
                args=(rig.redis().url, options.first_seed + number, processes, steps, done, report),
                daemon=True,
            )
            for number, report in enumerate(reports)
        ]
        for child in children:
            child.start()
        try:
            _wait(children, done, steps, rig.progress("step", steps))
        finally:
            for child in children:
                child.terminate()
                child.join()
        found = [report.read_text() for report in reports if report.exists()]
    assert found or done.value >= steps, "the search broke off"
    return Measured(
        is_held=not found,
        figure=f"{len(found)} orders of steps in which they differ",
        counts=f"{done.value:,} steps in {processes} processes",
        detail="\n".join(found),
    )


def _wait(children: Sequence[Any], done: "Synchronized[int]", steps: int, progress: Progress) -> None:
    """Until all have done their part, or one has found something: that ends the search of all."""
    while not any(child.exitcode for child in children) and not all(child.exitcode == 0 for child in children):
        time.sleep(0.5)
        progress.reached(done.value)


def explore(redis_url: str, first_seed: int, stride: int, steps: int, done: "Synchronized[int]", report: Path) -> None:
    """Adds to `done` what it does. Ends the process with 1 once it has found something; the shortest way to it is in `report`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Whoever has started us decides.

    class Counted(machine(redis_url)):  # type: ignore[misc]
        has_begun = False

        @invariant()
        def is_counted(self) -> None:
            with done.get_lock():
                done.value += self.has_begun
            self.has_begun = True

    seeds = itertools.count(first_seed, stride)
    try:
        while done.value < steps:
            run_state_machine_as_test(seed(next(seeds))(Counted), settings=SETTINGS)
    except Exception:
        report.write_text(traceback.format_exc())
        sys.exit(1)


PROMISE = alone(
    "model", "The gate's scripts do what its model says", "the same answers and counters after any steps", run
)
