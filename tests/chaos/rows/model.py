"""Any order of steps: the gate's scripts against their model, a million of them (`tests/budgets/test_gate_property.py`)."""

import itertools
import multiprocessing
import os
import sys
import tempfile
import traceback
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from tests.budgets.test_gate_property import machine
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
        progress = rig.progress("step", steps)
        # One that has found something ends the search of all.
        while all(child.exitcode is None for child in children) and done.value < steps:
            children[0].join(1)
            progress.reached(done.value)
        found = []
        for child, report in zip(children, reports, strict=True):
            child.join()
            found += [report.read_text()] if child.exitcode else []
    return Measured(
        is_held=not found,
        figure=f"{len(found)} orders of steps in which they differ",
        counts=f"{done.value:,} steps in {processes} processes",
        detail="\n".join(found),
    )


def explore(redis_url: str, first_seed: int, stride: int, steps: int, done: "Synchronized[int]", report: Path) -> None:
    """Adds to `done` what it does. Ends the process with 1 once it has found something; the shortest way to it is in `report`."""

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
