"""`manage.py lift`: let traffic flow again that a kill switch halts, also while PostgreSQL is down."""

from argparse import ArgumentParser
from typing import Any, cast

import redis
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from budgets import gate
from controlplane.targets import UnknownTarget, add_target, find_target, operator
from keys import services as keys
from keys.kills import KillFlag, decode_flag, kill_field
from keys.redis import redis_client


class Command(BaseCommand):
    help = "Lift a kill switch."
    requires_system_checks = []  # As for `kill`.

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_target(parser)
        parser.add_argument("--reason", required=True, help="goes on record")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            flag = _flag(options["scope"], options["target"])
            keys.lift_flag(flag, reason=options["reason"], actor=operator())
        except (UnknownTarget, redis.RedisError) as error:
            raise CommandError(f"nothing is lifted: {error}") from None
        except ValidationError as error:
            raise CommandError(f"nothing is lifted: {' '.join(error.messages)}") from None
        self.stdout.write(f"Lifted: {flag.field}, kill switch {flag.kill_switch_id}")


def _flag(scope: Any, wanted: str) -> KillFlag:
    """The flag in force. Raises `UnknownTarget` when there is none."""
    client = redis_client()
    field = kill_field(scope, find_target(client, scope, wanted))
    body = cast("bytes | None", client.hget(gate.KILLS, field))
    if body is None:
        raise UnknownTarget(f"{field} is not halted")
    return decode_flag(body)
