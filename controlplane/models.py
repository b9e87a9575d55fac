"""What is changed but not published yet: an outbox, written with each change and emptied by `publish.py`. Nothing else."""

from typing import Self

from django.db import models
from django.utils import timezone


class UnpublishedQuerySet(models.QuerySet["Unpublished"]):
    def due(self) -> Self:
        return self.filter(due_at__lte=timezone.now())


class Unpublished(models.Model):
    """One thing that Redis is to be told, not before `due_at`: the snapshot, or the virtual key of `digest`.

    With it, the counter of `budget_id` is to hold what was spent before the budget was there.
    """

    id = models.BigAutoField(primary_key=True)
    digest = models.CharField(max_length=64, blank=True)
    budget_id = models.UUIDField(null=True, blank=True)
    due_at = models.DateTimeField(default=timezone.now)

    objects = UnpublishedQuerySet.as_manager()

    class Meta:
        default_permissions = ()
        ordering = ["id"]

    def __str__(self) -> str:
        return self.digest or "snapshot"
