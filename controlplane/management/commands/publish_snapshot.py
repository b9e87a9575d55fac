"""`manage.py publish_snapshot`: compile the configuration and put it in force, whether it was changed or not."""

from typing import Any

import redis
from django.core.management.base import BaseCommand, CommandError
from django.db import OperationalError

from controlplane.publish import Superseded, publish_snapshot


class Command(BaseCommand):
    help = "Compile the snapshot and put it in force. Not needed in use: every change does so."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            version = publish_snapshot()
        except (redis.RedisError, OperationalError, Superseded) as error:
            raise CommandError(f"not published: {error or type(error).__name__}") from None
        self.stdout.write(f"Snapshot {version} is in force.")
