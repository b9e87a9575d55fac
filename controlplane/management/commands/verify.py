"""`manage.py verify`: whether every copy of the money agrees, now; what does not, by name. Repairs nothing."""

import math
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from budgets import verifier
from budgets.comparison import USD
from budgets.ledger_models import Drift
from keys.redis import redis_client


class Command(BaseCommand):
    help = "Compare the ledger with its roll-ups and with the budget counters; fails where something differs."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--full", action="store_true", help="every hour of the ledger, however long it takes")

    def handle(self, *args: Any, **options: Any) -> None:
        sweep_s = math.inf if options["full"] else verifier.SWEEP_S
        try:
            run = verifier.verify(redis_client(), sweep_s=sweep_s, may_rest=False)
        except verifier.Taken:
            raise CommandError("another verifier is running: try again in a minute") from None
        counters = "Redis could not be compared" if run.counters is None else f"{run.counters:,} counters"
        looked_at = f"{run.hours:,} hours of the ledger, {counters}, {run.took_ms:,} ms"
        if not run.drifts:
            self.stdout.write(f"The books close: {looked_at}.")
            return
        for drift in Drift.objects.filter(closed_at=None):
            unit = "nano-USD" if drift.unit == USD else drift.unit
            self.stdout.write(f"{drift.get_kind_display()}: {drift.what}: {drift.difference:+,} {unit}")
        verb = "does" if run.drifts == 1 else "do"
        raise CommandError(f"{run.drifts} of them {verb} not agree: {looked_at}")
