"""`manage.py kill`: halt traffic from a terminal, also while PostgreSQL is down, and see which workers have done so."""

import time
from argparse import ArgumentParser
from typing import Any

import redis
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from controlplane import workers
from controlplane.targets import UnknownTarget, add_target, find_target, operator
from keys import services as keys
from keys.kills import KillFlag
from keys.redis import redis_client

WAIT_S = 1.0
POLL_S = 0.01


class Command(BaseCommand):
    help = "Halt traffic now: new requests are refused as soon as Redis has it, and live streams are cut."
    requires_system_checks = []  # Nothing stands between the operator and Redis.

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_target(parser)
        parser.add_argument("--reason", required=True, help="those who are refused read it, and it goes on record")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            flag = self._halt(options["scope"], options["target"], options["reason"])
        except (UnknownTarget, redis.RedisError) as error:
            raise CommandError(f"nothing is halted: {error}") from None
        except ValidationError as error:
            raise CommandError(f"nothing is halted: {' '.join(error.messages)}") from None
        kill_switch = keys.put_on_record(flag, actor=operator())
        if kill_switch._state.adding:
            self.stdout.write("PostgreSQL does not answer: this goes on record when it does.")

    def _halt(self, scope: Any, wanted: str, reason: str) -> KillFlag:
        client = redis_client()
        live = workers.live_workers(client)
        flag = keys.halt(scope, find_target(client, scope, wanted), reason=reason)
        self.stdout.write(f"Halted: {flag.field}, kill switch {flag.kill_switch_id}")
        if flag.reason != reason:
            self.stdout.write(f"It was thrown before: {flag.reason}")
        self.stdout.write(_acknowledged(client, flag, set(live)))
        return flag


def _acknowledged(client: redis.Redis, flag: KillFlag, live: set[str]) -> str:
    """Wait a little for every live worker, and say what they did."""
    deadline_s = time.monotonic() + WAIT_S
    heard = workers.acknowledgements(client, flag.kill_switch_id)
    while not live <= heard.keys() and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
        heard = workers.acknowledgements(client, flag.kill_switch_id)
    streams_cut = sum(said.streams_cut for said in heard.values())
    elapsed_ms = max((said.elapsed_ms for said in heard.values()), default=0)
    line = f"{len(live & heard.keys())} of {len(live)} workers, {streams_cut} streams cut, {elapsed_ms:.0f} ms"
    silent = sorted(live - heard.keys())
    # It admits nothing all the same: the flag is looked at in Redis, with each request.
    return f"{line}; not heard from: {', '.join(silent)}" if silent else line
