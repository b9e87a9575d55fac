"""Which budgets and limits apply to a call: subjects of rules matched against what is known of it. Values in, values out.

A subject is a mapping of dimensions to values, all of which must match; `*` matches every value and gives each a counter of its
own. {} is everybody. Dimensions are team, project, environment, key, end_user, alias, model, provider, deployment, pool
(of credentials), and tag:<name>. A call that has no value in a dimension is in no subject that names it.
"""

from collections.abc import Iterable, Mapping
from typing import Generic, Protocol, TypeVar

EACH = "*"
# What is known as soon as the key is: no request changes it.
OF_KEYS = frozenset({"team", "project", "environment", "key"})

Subject = Mapping[str, str]


class Rule(Protocol):
    @property
    def subject(self) -> dict[str, str]: ...


R = TypeVar("R", bound=Rule)


def matches(subject: Subject, values: Mapping[str, str]) -> bool:
    """`values` by dimension, "" where the call has none."""
    for dimension, wanted in subject.items():
        value = values.get(dimension)
        if not value or wanted not in (EACH, value):
            return False
    return True


def counter_values(subject: Subject, values: Mapping[str, str]) -> tuple[str, ...]:
    """What tells one counter of a rule from its others: the values of the dimensions that say `*`, by the dimensions' names."""
    if EACH not in subject.values():
        return ()
    return tuple(values[dimension] for dimension, wanted in sorted(subject.items()) if wanted == EACH)


def is_of_keys(subject: Subject) -> bool:
    """Whether the key alone decides."""
    return OF_KEYS.issuperset(subject)


def scope_of(subject: Subject) -> str:
    """Whose rule it is, for people: `project`, `project and model`, `gateway` for everybody's."""
    return " and ".join(dimension.replace("_", " ") for dimension in subject) or "gateway"


class Index(Generic[R]):
    """Rules by one value of their subjects, so that a call looks only at those that may be about it. They keep their order."""

    def __init__(self, rules: Iterable[R]) -> None:
        self._rules: dict[tuple[str, str], list[tuple[int, R]]] = {}
        dimensions: set[str] = set()
        for number, rule in enumerate(rules):
            dimensions.update(rule.subject)
            self._rules.setdefault(_most_telling(rule.subject), []).append((number, rule))
        # What decides which rules match.
        self.dimensions = tuple(sorted(dimensions))

    def matching(self, values: Mapping[str, str]) -> list[R]:
        if not self._rules:
            return []
        looked_up = [("", ""), *values.items(), *((dimension, EACH) for dimension in values)]
        found = [
            numbered
            for place in looked_up
            for numbered in self._rules.get(place, ())
            if matches(numbered[1].subject, values)
        ]
        return [rule for _, rule in sorted(found, key=_number)]


def _number(numbered: tuple[int, object]) -> int:
    return numbered[0]


def _most_telling(subject: Subject) -> tuple[str, str]:
    """The narrowest of a subject's values: teams have many projects, and any of them may use a model."""
    named = [item for item in subject.items() if item[1] != EACH]
    return min(named or subject.items(), key=_breadth, default=("", ""))


_NARROWEST_FIRST = (
    "key",
    "end_user",
    "project",
    "deployment",
    "pool",
    "team",
    "alias",
    "model",
    "provider",
    "environment",
)


def _breadth(item: tuple[str, str]) -> int:
    dimension = item[0]
    return _NARROWEST_FIRST.index(dimension) if dimension in _NARROWEST_FIRST else 1
