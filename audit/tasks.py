"""Celery's face of the audit tables."""

from celery import shared_task

from audit import services


@shared_task(name="audit.ensure_partitions")
def ensure_partitions() -> None:
    services.ensure_partitions()
