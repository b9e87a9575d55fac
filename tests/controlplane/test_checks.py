"""Weak settings: each is refused with an id and a hint, outside the demo, and by every process."""

import os
import subprocess
import sys

import pytest
from django.core.exceptions import ImproperlyConfigured

from controlplane.checks import check_settings, refuse_weak_settings

GOOD = {
    "DEMO": False,
    "DEBUG": False,
    "SECRET_KEY_IS_SET": True,
    "SECRET_KEY": "KgTq0y4h8s7vN2mWc5Xr9LdZ1pBfJ6uEaQiOwYxHtVnRlCkMjG",
    "ALLOWED_HOSTS": ["gate.example.com"],
    "TOLLGATE_VAULT_KEY": "YSBtYXN0ZXIga2V5IGZvciB0aGUgdGVzdHM6IDMyIGI=",
}


def found(settings, **changes):
    for name, value in {**GOOD, **changes}.items():
        setattr(settings, name, value)
    return [problem.id for problem in check_settings(None)]


@pytest.mark.parametrize(
    ("changes", "ids"),
    [
        ({}, []),
        ({"DEBUG": True}, ["tollgate.E001"]),
        ({"SECRET_KEY_IS_SET": False}, ["tollgate.E002"]),
        ({"SECRET_KEY": "short"}, ["tollgate.E002"]),
        ({"SECRET_KEY": "a" * 60}, ["tollgate.E002"]),
        ({"TOLLGATE_VAULT_KEY": ""}, ["tollgate.E003"]),
        ({"TOLLGATE_VAULT_KEY": "nonsense"}, ["tollgate.E003"]),
        ({"ALLOWED_HOSTS": []}, ["tollgate.E004"]),
        ({"ALLOWED_HOSTS": ["*"]}, ["tollgate.E004"]),
        ({"DEMO": True, "ALLOWED_HOSTS": ["127.0.0.1"], "SECRET_KEY_IS_SET": False}, []),
        ({"DEMO": True, "ALLOWED_HOSTS": ["gate.example.com"]}, ["tollgate.E005"]),
    ],
)
def test_each_weakness_has_its_id(settings, changes, ids):
    assert found(settings, **changes) == ids


def test_a_process_that_runs_no_checks_refuses_all_the_same(settings):
    found(settings, TOLLGATE_VAULT_KEY="")
    with pytest.raises(ImproperlyConfigured, match=r"tollgate\.E003.*TOLLGATE_VAULT_KEY"):
        refuse_weak_settings()


def run(*argv, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")}
    return subprocess.run(
        [sys.executable, *argv], env={**clean, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


def test_production_settings_are_clean():
    done = run(
        *["manage.py", "check", "--deploy", "--fail-level", "WARNING"],
        TOLLGATE_SECRET_KEY=GOOD["SECRET_KEY"],
        TOLLGATE_VAULT_KEY=GOOD["TOLLGATE_VAULT_KEY"],
        TOLLGATE_ALLOWED_HOSTS="gate.example.com",
    )
    assert done.returncode == 0, done.stderr


def test_nothing_starts_with_weak_settings():
    for argv in (["manage.py", "check"], ["-c", "import controlplane.wsgi"]):
        done = run(*argv, TOLLGATE_DEBUG="1")
        assert done.returncode != 0
        for problem in ("tollgate.E001", "tollgate.E002", "tollgate.E003", "tollgate.E004"):
            assert problem in done.stderr
