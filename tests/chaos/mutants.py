"""Code that is broken on purpose, one place at a time: a check that does not see it is no check.

A mutant is a copy of the tree with one text replaced. In the copy the same experiment is run, short, and has to end with
"not held"; an experiment that could not be run proves nothing.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
CODE = ("audit", "budgets", "controlplane", "keys", "proxy", "routing", "teams", "templates", "tests", "docs")
NOT_HELD = 1
TIMEOUT_S = 900


class Mutant(NamedTuple):
    """`text` stands exactly once in the file at `path`, and `becomes` something worse."""

    promise: str
    name: str
    path: str
    text: str
    becomes: str
    arguments: tuple[str, ...] = ()


MUTANTS: tuple[Mutant, ...] = ()


def of(promise: str) -> list[Mutant]:
    return [mutant for mutant in MUTANTS if mutant.promise == promise]


def broken(mutant: Mutant) -> str:
    """The file as the mutant has it."""
    body = (ROOT / mutant.path).read_text()
    assert body.count(mutant.text) == 1, (
        f"{mutant.name}: its text stands {body.count(mutant.text)} times in {mutant.path}"
    )
    return body.replace(mutant.text, mutant.becomes)


def is_found(mutant: Mutant) -> bool:
    """Whether the experiment says, of the broken code, that the promise is not held."""
    with tempfile.TemporaryDirectory(prefix="tg-mutant-") as directory:
        tree = Path(directory)
        for name in CODE:
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "results.json"))
        shutil.copy(ROOT / "manage.py", tree)
        (tree / mutant.path).write_text(broken(mutant))
        command = [sys.executable, "-m", "tests.chaos", "--short", "--dry", "--only", mutant.promise, *mutant.arguments]
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode not in (0, NOT_HELD):
        print(done.stdout[-2000:], done.stderr[-4000:])
    return done.returncode == NOT_HELD
