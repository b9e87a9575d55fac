"""`make chaos`: kill, pause and cut processes under load, and reconcile the books. Prints a scorecard, writes
`docs/reliability.md`.

python -m tests.chaos [--short] [--only NAME] [--first-seed N] [--seeds N] [--kills N] [--calls N] [--hours H] [--mutants]

Answers 0 when every promise that was run is held, 1 when one is not, 2 when one could not be run, 130 when it was stopped:
what was over by then is kept.
"""

import argparse
import itertools
import signal
import sys
import time
import traceback
from collections.abc import Sequence

from tests.chaos import mutants, scorecard
from tests.chaos.promises import PROMISES
from tests.chaos.rig import CannotRun, Options, Promise, Rig

HELD, NOT_HELD, BROKEN, STOPPED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _arguments(argv)
    # As Ctrl-C: what was started must not be left behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    wanted = [promise for promise in PROMISES if not arguments.only or promise.name in arguments.only]
    if arguments.mutants:
        return _hunt(wanted, keeps=not arguments.dry)
    options = Options(
        is_short=arguments.short,
        first_seed=arguments.first_seed,
        seeds=arguments.seeds,
        kills=arguments.kills,
        calls=arguments.calls,
    )
    results: dict[str, scorecard.Result] = {}
    try:
        worst = _measure_all(
            wanted, options, time.monotonic() + arguments.hours * 3600, results, keeps=not arguments.dry
        )
    except KeyboardInterrupt:
        _say("\nstopped")
        worst = STOPPED
    _say(f"\n{scorecard.summary(results, wanted)}")
    return worst


def _measure_all(
    wanted: Sequence[Promise],
    options: Options,
    deadline_s: float,
    results: dict[str, scorecard.Result],
    *,
    keeps: bool,
) -> int:
    """`results` has those that are over, whenever one looks."""
    worst = HELD
    for _, same in itertools.groupby(wanted, key=lambda promise: promise.run):
        promises = list(same)
        if time.monotonic() > deadline_s:
            _say(f"the time is over: {promises[0].name} and what follows keep their dates")
            break
        _say(f"\n{len(results) + 1} of {len(wanted)}")
        found = _measure(promises, options)
        if keeps:
            scorecard.keep(found, PROMISES)
        results |= found
        worst = max(worst, _status(promises, found))
    return worst


def _measure(promises: Sequence[Promise], options: Options) -> dict[str, scorecard.Result]:
    """Empty where the experiment itself failed."""
    for promise in promises:
        _say(f"{promise.name}: {promise.text} ({promise.wanted})")
    began_at_s = time.monotonic()
    names = [promise.name for promise in promises]
    try:
        with Rig(lambda text: _say(f"  {text}")) as rig:
            measured = promises[0].run(rig, options, names)
    except CannotRun as reason:
        _say(f"  not run: {reason}")
        return {name: scorecard.not_run(str(reason)) for name in names}
    except Exception:
        traceback.print_exc()
        _say("  the experiment itself failed")
        return {}
    elapsed_s = time.monotonic() - began_at_s
    for name, row in measured.items():
        _say(f"  {name} {'held' if row.is_held else 'NOT HELD'}: {row.figure} ({row.counts})")
        if row.detail:
            _say(f"    {row.detail}")
    _say(f"  it took {elapsed_s:.0f} s")
    return {
        name: scorecard.result_of(row, seed=options.first_seed, elapsed_s=elapsed_s / len(measured))
        for name, row in measured.items()
    }


def _status(promises: Sequence[Promise], found: dict[str, scorecard.Result]) -> int:
    if len(found) < len(promises):
        return BROKEN
    return NOT_HELD if any(result.is_held is False for result in found.values()) else HELD


def _hunt(wanted: Sequence[Promise], *, keeps: bool) -> int:
    """Each mutant must be found out by the check that it is meant for; one that is red anyway finds nothing."""
    hunted = [mutant for promise in wanted for mutant in mutants.of(promise.name)]
    worst = HELD
    for number, mutant in enumerate(hunted, start=1):
        _say(f"\n{number} of {len(hunted)}: {mutant.promise}, broken on purpose: {mutant.name}")
        is_shown = mutants.is_held(mutant.promise, mutant.arguments)
        was_found = is_shown and mutants.is_found(mutant)
        _say("  found" if was_found else "  NOT FOUND" if is_shown else "  not held as it is: that shows nothing")
        if keeps:
            scorecard.keep_mutant(mutant.promise, mutant.name, was_found=was_found, known=PROMISES)
        worst = worst if was_found else NOT_HELD
    return worst


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.splitlines()[0])
    names = [promise.name for promise in PROMISES]
    parser.add_argument("--short", action="store_true", help="small numbers: what every change is tried with")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--first-seed", type=int, default=1, metavar="N")
    parser.add_argument("--seeds", type=int, metavar="N", help="how many seeds, where a promise is tried with several")
    parser.add_argument("--kills", type=int, metavar="N", help="how many kills of each process")
    parser.add_argument("--calls", type=int, metavar="N", help="how many calls, or steps of the model")
    parser.add_argument("--hours", type=float, default=24.0, metavar="H", help="start no further promise after so long")
    parser.add_argument("--mutants", action="store_true", help="break the code on purpose: every check must see it")
    parser.add_argument("--dry", action="store_true", help="write no scorecard")
    return parser.parse_args(argv)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
