"""`manage.py replay_dead_letters`: show the usage events that could not be in the ledger, and give them to ingest once more."""

from argparse import ArgumentParser
from typing import Any

import redis
from django.core.management.base import BaseCommand, CommandError
from django.db import OperationalError

from budgets.dead_letters import dead_letters, replay
from controlplane.targets import operator
from keys.redis import redis_client


class Command(BaseCommand):
    help = "Show each usage event that could not be stored, and put it back into the stream that ingest reads."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only show them")
        parser.add_argument("--reason", default="", help="goes on record")

    def handle(self, *args: Any, **options: Any) -> None:
        client = redis_client()
        try:
            letters = list(dead_letters(client))
            for letter in letters:
                said = " ".join(
                    f"{name.decode(errors='replace')}={value.decode(errors='replace')}"
                    for name, value in letter.fields.items()
                )
                self.stdout.write(f"{letter.entry_id.decode()}: {letter.reason}\n  {said}")
            if letters and not options["dry_run"]:
                replay(client, letters, actor=operator(), reason=options["reason"])
        except (redis.RedisError, OperationalError) as error:
            raise CommandError(f"not all is replayed: {error or type(error).__name__}") from None
        done = "wait" if options["dry_run"] else "are given to ingest once more"
        self.stdout.write(f"{len(letters)} events {done}." if letters else "There are none.")
