"""`manage.py rerate`: apply what was approved, or report what it changes. Asking and approving are in the admin and the API."""

import csv
import uuid
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.actors import Actor
from audit.csv_export import inert
from budgets import rerate
from routing.price_models import Rerate


class Command(BaseCommand):
    help = "Apply an approved re-rate to the ledger, or report as CSV what it changes."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", type=uuid.UUID)
        parser.add_argument(
            "--report", action="store_true", help="Write CSV, one line for each record, and apply nothing."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        row = Rerate.objects.select_related("provider", "model", "price").filter(pk=options["id"]).first()
        if row is None:
            raise CommandError("there is no such re-rate")
        if options["report"]:
            writer = csv.writer(self.stdout)
            writer.writerow(rerate.REPORT_HEADER)
            writer.writerows([inert(cell) for cell in line] for line in rerate.report_lines(row))
            return
        try:
            summary = rerate.apply(row, actor=Actor.system("manage.py rerate"))
        except ValueError as error:
            raise CommandError(str(error)) from None
        difference = summary.after_usd - summary.before_usd
        self.stdout.write(f"{summary.records} records reckoned again: {difference:+} USD.")
