"""`manage.py prepare`: what `up` does to the databases before anything serves. Safe to run again."""

import os
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand

from audit.services import ensure_partitions
from controlplane.demo import Addresses, seed
from controlplane.rebuild import rebuild_redis


class Command(BaseCommand):
    help = (
        "Migrate, make the ledger's partitions, and fill Redis where it is empty; with --demo, make the organisation."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--demo", type=Path, metavar="FILE", help="where to write how the demo is reached")
        for name in Addresses._fields:
            parser.add_argument(f"--{name.replace('_', '-')}", default="")

    def handle(self, *args: Any, **options: Any) -> None:
        call_command("migrate", interactive=False, verbosity=options["verbosity"])
        ensure_partitions()
        if options["demo"] is not None:
            seed(options["demo"], Addresses(*(options[name] for name in Addresses._fields)), os.environ)
        rebuild_redis()
