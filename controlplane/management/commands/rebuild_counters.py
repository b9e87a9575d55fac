"""`manage.py rebuild_counters`: bring the budget counters in Redis back to what the ledger says, while traffic flows."""

from argparse import ArgumentParser
from typing import Any

import redis
from django.core.management.base import BaseCommand, CommandError
from django.db import OperationalError

from budgets import ledger
from budgets.comparison import Difference
from controlplane.rebuild import NotBuilt, drifted_counters, repair_counters
from controlplane.targets import operator
from keys.redis import redis_client


class Command(BaseCommand):
    help = "Show each budget counter that differs from the ledger and the requests that run, and set it right."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only show what differs")
        parser.add_argument("--reason", default="", help="goes on record")

    def handle(self, *args: Any, **options: Any) -> None:
        client = redis_client()
        try:
            differences = drifted_counters(client)
            for difference in differences:
                self.stdout.write(_line(difference))
            if differences and not options["dry_run"]:
                repair_counters(client, differences, actor=operator(), reason=options["reason"])
        except NotBuilt:
            raise CommandError("Redis is being rebuilt: its counters come with that") from None
        except ledger.Taken:
            raise CommandError("somebody else ingests or compares: try again in a moment") from None
        except (redis.RedisError, OperationalError) as error:
            raise CommandError(f"nothing is repaired: {error or type(error).__name__}") from None
        done = "differ" if options["dry_run"] else "are set right"
        self.stdout.write(
            f"{len(differences)} counters {done}." if differences else "Every counter is as the ledger says."
        )


def _line(difference: Difference) -> str:
    drift = difference.found - difference.expected
    return (
        f"{difference.what}: {difference.found:,} where {difference.expected:,} is right ({drift:+,} {difference.unit})"
    )
