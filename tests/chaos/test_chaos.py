"""The chaos suite in short, with fixed seeds: what does not depend on how busy this machine is. `make chaos` runs all of it."""

import pytest

from tests.chaos import mutants
from tests.chaos.promises import PROMISES
from tests.chaos.rig import Options, Rig

SHORT = ("hard_cap", "stranded", "missing_worker", "missing_redis", "retried")
BY_NAME = {promise.name: promise for promise in PROMISES}


@pytest.mark.parametrize("name", SHORT)
def test_a_promise_is_held(name):
    with Rig(print) as rig:
        measured = BY_NAME[name].run(rig, Options(is_short=True), [name])[name]
    assert measured.is_held, f"{measured.figure} ({measured.counts}) {measured.detail}"


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: f"{mutant.promise}: {mutant.name}")
def test_the_text_that_a_mutant_breaks_is_there(mutant):
    assert mutant.promise in BY_NAME
    assert mutants.broken(mutant)


@pytest.mark.parametrize("mutant", mutants.of("hard_cap")[:1], ids=lambda mutant: mutant.name)
def test_a_gate_that_is_broken_on_purpose_is_found_out(mutant):
    assert mutants.is_found(mutant)
