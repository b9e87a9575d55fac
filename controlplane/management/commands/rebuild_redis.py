"""`manage.py rebuild_redis`: give an empty Redis everything it holds; `--force` for one that is not empty."""

from argparse import ArgumentParser
from typing import Any

import redis
from django.core.management.base import BaseCommand, CommandError
from django.db import OperationalError

from controlplane.publish import Superseded
from controlplane.rebuild import rebuild_redis


class Command(BaseCommand):
    help = "Rebuild Redis from PostgreSQL. Without --force only when it is empty, as happens by itself each second."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--force", action="store_true", help="rebuild one that is in use; nothing is admitted meanwhile"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            was_rebuilt = rebuild_redis(force=options["force"])
        except (redis.RedisError, OperationalError, Superseded) as error:
            raise CommandError(f"not rebuilt: {error or type(error).__name__}") from None
        self.stdout.write("Redis is rebuilt." if was_rebuilt else "Redis has its epoch: nothing to do.")
