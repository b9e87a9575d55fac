"""Weak settings, as system checks: outside the demo nothing starts with one of them.

`manage.py` runs the checks by itself; `refuse_weak_settings` is for the processes that do not.
"""

from collections.abc import Sequence
from typing import Any

from django.apps.config import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register, run_checks
from django.core.exceptions import ImproperlyConfigured

from keys.vault import VaultError, parse_master_keys

TAG = "tollgate"
SECRET_KEY_LENGTH_MIN = 50


def enable() -> None:
    """Run with every `manage.py` command that runs checks."""
    register(check_settings, TAG)


def check_settings(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    problems = [_vault_key()]
    if settings.DEMO:
        problems += [_demo_hosts()]
    else:
        problems += [_debug(), _secret_key(), _allowed_hosts()]
    return [problem for problem in problems if problem is not None]


def refuse_weak_settings() -> None:
    """Raises ImproperlyConfigured with every problem and its hint."""
    problems = [message for message in run_checks(tags=[TAG]) if message.is_serious()]
    if problems:
        raise ImproperlyConfigured("; ".join(f"({problem.id}) {problem.msg} {problem.hint}" for problem in problems))


def _debug() -> CheckMessage | None:
    if not settings.DEBUG:
        return None
    return Error("DEBUG shows settings and source to visitors.", hint="Unset TOLLGATE_DEBUG.", id="tollgate.E001")


def _secret_key() -> CheckMessage | None:
    if not settings.SECRET_KEY_IS_SET:
        problem = "There is no secret key."
    elif len(settings.SECRET_KEY) < SECRET_KEY_LENGTH_MIN or len(set(settings.SECRET_KEY)) < 10:
        problem = "The secret key can be guessed."
    else:
        return None
    hint = "Set TOLLGATE_SECRET_KEY to something random, as `openssl rand -base64 48` prints it."
    return Error(problem, hint=hint, id="tollgate.E002")


def _vault_key() -> CheckMessage | None:
    try:
        parse_master_keys(settings.TOLLGATE_VAULT_KEY)
    except VaultError as error:
        hint = "Set TOLLGATE_VAULT_KEY to what `openssl rand -base64 32` prints, and keep a copy of it."
        return Error(f"Provider credentials cannot be sealed: {error}.", hint=hint, id="tollgate.E003")
    return None


def _allowed_hosts() -> CheckMessage | None:
    hosts = settings.ALLOWED_HOSTS
    if hosts and "*" not in hosts:
        return None
    return Error(
        "The admin answers to no name, or to any.",
        hint="Set TOLLGATE_ALLOWED_HOSTS to the names it is reached by, separated by commas.",
        id="tollgate.E004",
    )


def _demo_hosts() -> CheckMessage | None:
    # The test runner adds a host of its own.
    strangers = set(settings.ALLOWED_HOSTS) - {*settings.LOOPBACK_HOSTS, "testserver"}
    if not strangers:
        return None
    return Error(
        "The demo speaks plain http, so it answers on loopback only.",
        hint="Unset TOLLGATE_ALLOWED_HOSTS, or set TOLLGATE_DEMO=0 and give it real secrets.",
        id="tollgate.E005",
    )
