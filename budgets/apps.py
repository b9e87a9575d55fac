from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class BudgetsConfig(AppConfig):
    name = "budgets"
    verbose_name = "Budgets and usage"

    def ready(self) -> None:
        """The admin finds `admin.py` by itself; pages that fill a file of their own are found here."""
        autodiscover_modules("alert_admin", "increase_admin", "ledger_admin", "price_admin")
