"""`manage.py propose_prices`: what the catalogue of prices says otherwise than the price book, for a person to approve."""

from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from audit.actors import Actor
from routing import catalogue, services


class Command(BaseCommand):
    help = "Propose the prices in which the catalogue differs from the price book. Nothing is in force before it is approved."

    def handle(self, *args: Any, **options: Any) -> None:
        proposed = services.compare_with_catalogue(timezone.now())
        actor = Actor.system("manage.py propose_prices")
        for proposal in services.propose_prices(proposed, source=catalogue.source(), actor=actor):
            self.stdout.write(str(proposal))
            for what, before, after in proposal.differences:
                self.stdout.write(f"    {what}: {before or 'none'} → {after or 'none'}")
            for remark in proposal.remarks:
                self.stdout.write(f"    left out: {remark}")
        self.stdout.write(f"{len(proposed)} models differ from {catalogue.source()}; they are under Proposed prices.")
