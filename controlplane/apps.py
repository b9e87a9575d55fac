from django.apps import AppConfig

from audit.signals import recorded
from controlplane import checks


class ControlPlaneConfig(AppConfig):
    name = "controlplane"
    verbose_name = "Control plane"

    def ready(self) -> None:
        checks.enable()
        from controlplane.publish import note_change  # noqa: PLC0415  (models load before this, and not earlier)

        recorded.connect(note_change, dispatch_uid="controlplane.publish")
