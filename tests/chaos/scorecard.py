"""The scorecard: what was measured, kept in `results.json` promise by promise, and `docs/reliability.md` written from it."""

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from tests.chaos.rig import Measured, Promise

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- scorecard -->\n", "<!-- /scorecard -->\n"


class Result(msgspec.Struct, kw_only=True):
    """One promise as it was last measured. `is_held` None: it cannot be run there. `seed` is the first of those run."""

    is_held: bool | None
    figure: str
    counts: str = ""
    detail: str = ""
    seed: int = 1
    date: str
    commit: str
    machine: str
    elapsed_s: float = 0.0
    # What the check said of code that was broken on purpose: the mutant's name to whether it was found out.
    mutants: dict[str, bool] = {}


def result_of(measured: Measured, *, seed: int, elapsed_s: float) -> Result:
    return Result(
        is_held=measured.is_held,
        figure=measured.figure,
        counts=measured.counts,
        detail=measured.detail,
        seed=seed,
        elapsed_s=round(elapsed_s, 1),
        **_circumstances(),
    )


def not_run(reason: str) -> Result:
    return Result(is_held=None, figure=reason, **_circumstances())


def load() -> dict[str, Result]:
    if not RESULTS.exists():
        return {}
    return msgspec.json.decode(RESULTS.read_bytes(), type=dict[str, Result])


def keep(found: Mapping[str, Result], known: Iterable[Promise]) -> None:
    """The others keep what they had, and their dates."""
    results = load()
    for name, result in found.items():
        if name in results:
            result.mutants = results[name].mutants
        results[name] = result
    write(results, known)


def keep_mutant(promise: str, mutant: str, *, was_found: bool, known: Iterable[Promise]) -> None:
    results = load()
    if promise in results:
        results[promise].mutants[mutant] = was_found
        write(results, known)


def write(results: dict[str, Result], known: Iterable[Promise]) -> None:
    RESULTS.write_text(json.dumps(msgspec.to_builtins(dict(sorted(results.items()))), indent=2) + "\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + _table(results, known) + END + after)


def summary(results: Mapping[str, Result], wanted: Iterable[Promise]) -> str:
    """For the terminal: a line each, also of those that were not come to."""
    marks = {True: "held", False: "NOT HELD", None: "not run"}
    lines = []
    for promise in wanted:
        result = results.get(promise.name)
        told = f"{marks[result.is_held]:9} {result.figure} ({result.counts})" if result else "not come to, or broken"
        lines.append(f"{promise.name:18} {told}")
    return "\n".join(lines)


def _table(results: dict[str, Result], known: Iterable[Promise]) -> str:
    lines = [
        "| promise | wanted | measured | run | mutants found | date, commit |",
        "|---|---|---|---|---|---|",
    ]
    for promise in known:
        result = results.get(promise.name)
        if result is None:
            lines.append(f"| **{promise.text}** `{promise.name}` | {promise.wanted} | not measured yet | | | |")
            continue
        verdict = {True: "held", False: "**not held**", None: "not run"}[result.is_held]
        found = f"{sum(result.mutants.values())} of {len(result.mutants)}" if result.mutants else ""
        lines.append(
            f"| **{promise.text}** `{promise.name}` | {promise.wanted} | {verdict}: {result.figure} "
            f"| {result.counts}, seed {result.seed} | {found} | {result.date}, `{result.commit}` |"
        )
    machines = sorted({result.machine for result in results.values()})
    return "\n".join([*lines, "", f"Measured on: {'; '.join(machines) or 'nothing yet'}.", ""])


def _circumstances() -> dict[str, str]:
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "machine": f"{os.cpu_count()} cores, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}",
    }


def _commit() -> str:
    """With a plus where the tree differs from it, but for what a run writes itself."""
    own = [f":!{path.relative_to(ROOT)}" for path in (RESULTS, PAGE)]
    try:
        commit, changes = (
            subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--", ".", *own])
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changes else "")
