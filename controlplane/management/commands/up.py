"""`manage.py up`: a whole Tollgate on one machine, in the foreground."""

import os
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from controlplane.processes import StartFailed
from controlplane.up import up


class Command(BaseCommand):
    help = "Run everything on this machine: PostgreSQL and Redis where none are named, admin, gateway, workers, demo."
    requires_system_checks = []  # What it starts checks itself; here nothing is configured yet.

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            up(os.environ, self._say)
        except StartFailed as error:
            raise CommandError(str(error)) from None

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()
