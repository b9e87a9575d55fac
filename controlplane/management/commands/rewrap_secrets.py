"""`manage.py rewrap_secrets`: put what the vault has sealed under the first master key, after a new one was set before the old."""

from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError
from django.db import OperationalError

from controlplane.targets import operator
from keys.services import rewrap_rows
from keys.vault import VaultError


class Command(BaseCommand):
    help = "Seal the secrets of providers and channels anew, under the first key of TOLLGATE_VAULT_KEY."

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            for model in apps.get_models():
                if all(field.name != "sealed" for field in model._meta.concrete_fields):
                    continue
                rewrapped = rewrap_rows(model._default_manager.all(), actor=operator(), reason="a new master key")
                self.stdout.write(f"{model._meta.verbose_name_plural}: {rewrapped} sealed anew")
        except (VaultError, OperationalError) as error:
            raise CommandError(
                f"not all are sealed anew: {error or type(error).__name__}. Put the key back that opens them, after the new one, "
                "and run this again; nothing is lost."
            ) from None
        self.stdout.write("Take the old key away a day from now: until then kept answers may be sealed under it.")
