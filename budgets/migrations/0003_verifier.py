"""Tables of the verifier (what it looked at, what differed) and of what is in suspense and resolved by hand."""

import django.core.validators
import django.utils.timezone
from django.db import migrations, models

import audit.ids


class Migration(migrations.Migration):
    dependencies = [
        ("budgets", "0002_usage_days"),
    ]

    operations = [
        migrations.CreateModel(
            name="TouchedHour",
            fields=[
                ("hour", models.DateTimeField(primary_key=True, serialize=False)),
            ],
            options={
                "default_permissions": (),
            },
        ),
        migrations.CreateModel(
            name="Verification",
            fields=[
                ("id", models.UUIDField(default=audit.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ("at", models.DateTimeField(db_index=True, default=django.utils.timezone.now)),
                ("took_ms", models.PositiveIntegerField()),
                (
                    "hours",
                    models.PositiveIntegerField(help_text="Hours whose records were compared with their roll-ups."),
                ),
                (
                    "counters",
                    models.PositiveIntegerField(
                        help_text="Counters compared with the ledger; null: Redis was away.", null=True
                    ),
                ),
                ("drifts", models.PositiveIntegerField(help_text="How many differ, after it.")),
                ("swept_until", models.DateTimeField(null=True)),
            ],
            options={
                "ordering": ["-at"],
                "default_permissions": ("view",),
            },
        ),
        migrations.CreateModel(
            name="Drift",
            fields=[
                ("id", models.UUIDField(default=audit.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("hours", "roll-up by hour"),
                            ("tag_hours", "roll-up of tags by hour"),
                            ("days", "roll-up by day"),
                            ("tag_days", "roll-up of tags by day"),
                            ("counters", "budget counter"),
                            ("suspense", "suspense"),
                        ],
                        max_length=16,
                    ),
                ),
                ("what", models.CharField(help_text="The row or the counter, by its key.")),
                (
                    "unit",
                    models.CharField(help_text="usd (amounts in nano-USD), tokens, requests, errors.", max_length=16),
                ),
                (
                    "expected",
                    models.BigIntegerField(help_text="What follows from the ledger; of a day, from its hours."),
                ),
                ("found", models.BigIntegerField()),
                ("opened_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("seen_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("closed_at", models.DateTimeField(null=True)),
            ],
            options={
                "ordering": ["-opened_at"],
                "default_permissions": ("view",),
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("closed_at__isnull", True)),
                        fields=("kind", "what"),
                        name="budgets_drift_one_open",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="SuspenseResolution",
            fields=[
                ("id", models.UUIDField(default=audit.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ("attempt_id", models.UUIDField()),
                ("team_id", models.UUIDField()),
                (
                    "cost_usd",
                    models.DecimalField(
                        decimal_places=9,
                        max_digits=20,
                        validators=[django.core.validators.MinValueValidator(0)],
                        verbose_name="cost (USD)",
                    ),
                ),
                ("reason", models.TextField()),
                ("proposed_by_id", models.CharField(max_length=64)),
                ("proposed_by", models.CharField(max_length=200)),
                ("proposed_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("is_approved", models.BooleanField(blank=True, null=True)),
                ("decided_by_id", models.CharField(blank=True, max_length=64)),
                ("decided_by", models.CharField(blank=True, max_length=200)),
                ("decided_at", models.DateTimeField(blank=True, null=True)),
                ("note", models.TextField(blank=True)),
                ("applied_at", models.DateTimeField(blank=True, null=True)),
            ],
            options={
                "ordering": ["-id"],
                "default_permissions": ("view", "add", "change"),
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("is_approved__isnull", True), ("is_approved", True), _connector="OR"),
                        fields=("attempt_id",),
                        name="budgets_suspenseresolution_one",
                        violation_error_message="There is a proposal for it already.",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("cost_usd__gte", 0)), name="budgets_suspenseresolution_cost"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("reason", ""), _negated=True), name="budgets_suspenseresolution_reason"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("is_approved__isnull", True),
                            ("is_approved", False),
                            models.Q(("decided_by_id", models.F("proposed_by_id")), _negated=True),
                            _connector="OR",
                        ),
                        name="budgets_suspenseresolution_second_person",
                        violation_error_message="Whoever proposed it does not approve it.",
                    ),
                ],
            },
        ),
    ]
