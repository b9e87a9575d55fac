"""`manage.py simulate_providers`: the provider simulator, which is a program of its own and knows no Django."""

import argparse
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from controlplane.simulator.__main__ import add_arguments, run


class Command(BaseCommand):
    help = "Run a stand-in for AI providers, with faults on demand and a journal of its own."
    requires_system_checks = []  # It needs nothing of what they check.

    def add_arguments(self, parser: CommandParser) -> None:
        add_arguments(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        if code := run(argparse.Namespace(**options)):
            sys.exit(code)
