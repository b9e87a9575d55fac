"""Budgets and limits of any subject, window, unit and mode; thresholds of budgets, and temporary increases.

What there is keeps its meaning: so much money for a team, a project or a virtual key; soft where it was not hard; limits per
minute. The columns `is_hard` and `amount_usd` stay, for what still runs of the release before; a later one drops the first.
"""

import audit.ids
import budgets.models
import django.contrib.postgres.fields
import django.core.validators
import django.db.models.deletion
import django.db.models.functions.math
import django.utils.timezone
import teams.models
from decimal import Decimal
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("budgets", "0003_verifier"),
        ("keys", "0002_passthrough"),
        ("routing", "0002_every_provider"),
        ("teams", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="Increase",
            fields=[
                ("id", models.UUIDField(default=audit.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                (
                    "amount",
                    models.DecimalField(
                        decimal_places=9,
                        help_text="On top of the budget's amount, in its unit.",
                        max_digits=24,
                        validators=[django.core.validators.MinValueValidator(Decimal("1E-9"))],
                    ),
                ),
                (
                    "starts_at",
                    models.DateTimeField(default=django.utils.timezone.now, help_text="UTC.", verbose_name="from"),
                ),
                ("ends_at", models.DateTimeField(help_text="UTC, exclusive. It ends by itself.", verbose_name="until")),
                ("reason", models.TextField(help_text="What it is for; whoever decides reads it.", max_length=2000)),
                (
                    "state",
                    models.CharField(
                        choices=[("requested", "requested"), ("approved", "approved"), ("rejected", "rejected")],
                        default="requested",
                        editable=False,
                        max_length=16,
                    ),
                ),
                ("requested_by", models.CharField(blank=True, editable=False, max_length=100)),
                (
                    "requested_by_name",
                    models.CharField(blank=True, editable=False, max_length=200, verbose_name="asked by"),
                ),
                ("decided_by", models.CharField(blank=True, editable=False, max_length=100)),
                (
                    "decided_by_name",
                    models.CharField(blank=True, editable=False, max_length=200, verbose_name="decided by"),
                ),
                ("decided_at", models.DateTimeField(blank=True, editable=False, null=True, verbose_name="decided")),
                ("note", models.TextField(blank=True, editable=False)),
                (
                    "created_at",
                    models.DateTimeField(default=django.utils.timezone.now, editable=False, verbose_name="asked"),
                ),
            ],
            options={
                "ordering": ["-id"],
                "permissions": [("decide_increase", "Can approve or reject increases that others ask for")],
            },
        ),
        migrations.CreateModel(
            name="Threshold",
            fields=[
                ("id", models.UUIDField(default=audit.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                (
                    "percent",
                    models.PositiveSmallIntegerField(
                        help_text="Of the amount that is spent or held.",
                        validators=[
                            django.core.validators.MinValueValidator(1),
                            django.core.validators.MaxValueValidator(1000),
                        ],
                    ),
                ),
                (
                    "action",
                    models.CharField(
                        choices=[
                            ("alert", "alert"),
                            ("throttle", "throttle"),
                            ("downgrade", "downgrade to a cheaper alias"),
                            ("block", "block"),
                        ],
                        default="alert",
                        max_length=16,
                    ),
                ),
                (
                    "per_minute",
                    models.PositiveIntegerField(
                        blank=True,
                        help_text="Throttle: so many requests pass in a minute.",
                        null=True,
                        validators=[django.core.validators.MinValueValidator(1)],
                        verbose_name="requests per minute",
                    ),
                ),
            ],
            options={
                "ordering": ["budget", "percent"],
            },
        ),
        migrations.RemoveConstraint(
            model_name="budget",
            name="budgets_budget_subject",
        ),
        migrations.RemoveConstraint(
            model_name="budget",
            name="budgets_budget_amount",
        ),
        migrations.RemoveConstraint(
            model_name="limit",
            name="budgets_limit_subject",
        ),
        migrations.RemoveConstraint(
            model_name="limit",
            name="budgets_limit_once",
        ),
        migrations.AlterField(
            model_name="budget",
            name="amount_usd",
            field=models.DecimalField(
                db_column="amount_usd",
                decimal_places=9,
                max_digits=24,
                validators=[django.core.validators.MinValueValidator(0)],
            ),
        ),
        migrations.RenameField(model_name="budget", old_name="amount_usd", new_name="amount"),
        migrations.AddField(
            model_name="budget",
            name="alias",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                to="routing.modelalias",
                verbose_name="model alias",
            ),
        ),
        migrations.AlterField(
            model_name="budget",
            name="amount",
            field=models.DecimalField(
                db_column="amount_usd",
                decimal_places=9,
                help_text="In US dollars, tokens (input and output) or requests, as the unit says.",
                max_digits=24,
                validators=[django.core.validators.MinValueValidator(0)],
            ),
        ),
        migrations.AddField(
            model_name="budget",
            name="deployment",
            field=models.ForeignKey(
                blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, to="routing.deployment"
            ),
        ),
        migrations.AddField(
            model_name="budget",
            name="each",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(max_length=80, validators=[budgets.models.validate_each]),
                blank=True,
                db_default=[],
                default=list,
                help_text="Each of these has the whole amount to itself, such as end_user: every end user may spend it. Separated by commas: team, project, key, environment, end_user, alias, model, provider, deployment, pool, or tag:NAME.",
                size=None,
            ),
        ),
        migrations.AddField(
            model_name="budget",
            name="end_user",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="As applications name them: OpenAI's user, Anthropic's metadata.user_id, or the header x-tollgate-user.",
                max_length=200,
                validators=[
                    django.core.validators.RegexValidator("\\A[^\\x00-\\x1f\\x7f]+\\Z", "No control characters.")
                ],
            ),
        ),
        migrations.AddField(
            model_name="budget",
            name="ends_at",
            field=models.DateTimeField(
                blank=True, help_text="Fixed dates only; UTC, exclusive.", null=True, verbose_name="until"
            ),
        ),
        migrations.AddField(
            model_name="budget",
            name="environment",
            field=models.CharField(
                blank=True,
                choices=[("dev", "development"), ("staging", "staging"), ("prod", "production")],
                db_default="",
                default="",
                max_length=16,
            ),
        ),
        migrations.AddField(
            model_name="budget",
            name="fiscal_month",
            field=models.PositiveSmallIntegerField(
                db_default=1,
                default=1,
                help_text="1 is January. Quarters and years begin with it.",
                validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(12)],
                verbose_name="fiscal year begins in month",
            ),
        ),
        migrations.AddField(
            model_name="budget",
            name="mode",
            field=models.CharField(
                choices=[
                    ("hard", "hard: refuses what would pass it"),
                    ("soft", "soft: only reports"),
                    ("observe", "observe: counts what a hard one would have refused"),
                ],
                db_default="hard",
                default="hard",
                max_length=8,
            ),
        ),
        migrations.AddField(
            model_name="budget",
            name="model",
            field=models.ForeignKey(
                blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, to="routing.model"
            ),
        ),
        migrations.AddField(
            model_name="budget",
            name="pool",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                to="keys.credentialpool",
                verbose_name="credential pool",
            ),
        ),
        migrations.AddField(
            model_name="budget",
            name="provider",
            field=models.ForeignKey(
                blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, to="routing.provider"
            ),
        ),
        migrations.AddField(
            model_name="budget",
            name="rollover",
            field=models.DecimalField(
                db_default=0,
                decimal_places=9,
                default=0,
                help_text="At most so much of what a window leaves is added to the next; 0: nothing is.",
                max_digits=24,
                validators=[django.core.validators.MinValueValidator(0)],
                verbose_name="roll-over",
            ),
        ),
        migrations.AddField(
            model_name="budget",
            name="starts_at",
            field=models.DateTimeField(blank=True, help_text="Fixed dates only; UTC.", null=True, verbose_name="from"),
        ),
        migrations.AddField(
            model_name="budget",
            name="tags",
            field=models.JSONField(
                blank=True,
                db_default={},
                default=dict,
                help_text='Requests that carry all of these, such as {"customer": "acme"}.',
                validators=[teams.models.validate_tags],
            ),
        ),
        migrations.AddField(
            model_name="budget",
            name="time_zone",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="IANA name, such as Europe/Berlin. Empty: the team's, else UTC.",
                max_length=64,
                validators=[teams.models.validate_time_zone],
            ),
        ),
        migrations.AddField(
            model_name="budget",
            name="unit",
            field=models.CharField(
                choices=[("usd", "US dollars"), ("tokens", "tokens"), ("requests", "requests")],
                db_default="usd",
                default="usd",
                max_length=8,
            ),
        ),
        migrations.AddField(
            model_name="limit",
            name="alias",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                to="routing.modelalias",
                verbose_name="model alias",
            ),
        ),
        migrations.AddField(
            model_name="limit",
            name="burst",
            field=models.DecimalField(
                blank=True,
                decimal_places=9,
                help_text="So much of it at once; empty: all of it.",
                max_digits=24,
                null=True,
                validators=[django.core.validators.MinValueValidator(Decimal("1E-9"))],
            ),
        ),
        migrations.AddField(
            model_name="limit",
            name="deployment",
            field=models.ForeignKey(
                blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, to="routing.deployment"
            ),
        ),
        migrations.AddField(
            model_name="limit",
            name="each",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(max_length=80, validators=[budgets.models.validate_each]),
                blank=True,
                db_default=[],
                default=list,
                help_text="Each of these has the whole amount to itself, such as end_user: every end user may spend it. Separated by commas: team, project, key, environment, end_user, alias, model, provider, deployment, pool, or tag:NAME.",
                size=None,
            ),
        ),
        migrations.AddField(
            model_name="limit",
            name="end_user",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="As applications name them: OpenAI's user, Anthropic's metadata.user_id, or the header x-tollgate-user.",
                max_length=200,
                validators=[
                    django.core.validators.RegexValidator("\\A[^\\x00-\\x1f\\x7f]+\\Z", "No control characters.")
                ],
            ),
        ),
        migrations.AddField(
            model_name="limit",
            name="environment",
            field=models.CharField(
                blank=True,
                choices=[("dev", "development"), ("staging", "staging"), ("prod", "production")],
                db_default="",
                default="",
                max_length=16,
            ),
        ),
        migrations.AddField(
            model_name="limit",
            name="is_observed",
            field=models.BooleanField(
                db_default=False,
                default=False,
                help_text="Refuses nothing, and counts what it would have refused.",
                verbose_name="only observed",
            ),
        ),
        migrations.AddField(
            model_name="limit",
            name="model",
            field=models.ForeignKey(
                blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, to="routing.model"
            ),
        ),
        migrations.AddField(
            model_name="limit",
            name="name",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                max_length=100,
                validators=[
                    django.core.validators.RegexValidator("\\A[^\\x00-\\x1f\\x7f]+\\Z", "No control characters.")
                ],
            ),
        ),
        migrations.AddField(
            model_name="limit",
            name="pool",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                to="keys.credentialpool",
                verbose_name="credential pool",
            ),
        ),
        migrations.AddField(
            model_name="limit",
            name="provider",
            field=models.ForeignKey(
                blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, to="routing.provider"
            ),
        ),
        migrations.AddField(
            model_name="limit",
            name="tags",
            field=models.JSONField(
                blank=True,
                db_default={},
                default=dict,
                help_text='Requests that carry all of these, such as {"customer": "acme"}.',
                validators=[teams.models.validate_tags],
            ),
        ),
        migrations.AddField(
            model_name="limit",
            name="window_s",
            field=models.PositiveIntegerField(
                db_default=60,
                default=60,
                help_text="60 is per minute, 3600 per hour, 86400 per day. Of no meaning for requests at once.",
                validators=[
                    django.core.validators.MinValueValidator(1),
                    django.core.validators.MaxValueValidator(2678400),
                ],
                verbose_name="per so many seconds",
            ),
        ),
        migrations.AlterField(
            model_name="budget",
            name="is_active",
            field=models.BooleanField(default=True, verbose_name="active"),
        ),
        migrations.AlterField(
            model_name="budget",
            name="scope",
            field=models.CharField(
                choices=[("global", "everybody"), ("team", "team"), ("project", "project"), ("key", "virtual key")],
                max_length=16,
            ),
        ),
        migrations.AlterField(
            model_name="budget",
            name="window",
            field=models.CharField(
                choices=[
                    ("hour", "hour"),
                    ("day", "day"),
                    ("week", "week"),
                    ("month", "month"),
                    ("quarter", "quarter"),
                    ("year", "year"),
                    ("total", "in total"),
                    ("fixed", "fixed dates"),
                ],
                default="month",
                help_text="When it begins anew. Weeks begin on Monday; “in total” never begins anew.",
                max_length=8,
            ),
        ),
        migrations.AlterField(
            model_name="limit",
            name="amount",
            field=models.DecimalField(
                decimal_places=9, max_digits=24, validators=[django.core.validators.MinValueValidator(0)]
            ),
        ),
        migrations.AlterField(
            model_name="limit",
            name="is_active",
            field=models.BooleanField(default=True, verbose_name="active"),
        ),
        migrations.AlterField(
            model_name="limit",
            name="metric",
            field=models.CharField(
                choices=[
                    ("requests", "requests"),
                    ("tokens", "tokens, input and output"),
                    ("input_tokens", "input tokens"),
                    ("output_tokens", "output tokens"),
                    ("spend", "spend in US dollars"),
                    ("concurrency", "requests at once"),
                ],
                max_length=16,
            ),
        ),
        migrations.AlterField(
            model_name="limit",
            name="scope",
            field=models.CharField(
                choices=[("global", "everybody"), ("team", "team"), ("project", "project"), ("key", "virtual key")],
                max_length=16,
            ),
        ),
        migrations.AddConstraint(
            model_name="budget",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("project__isnull", True),
                        ("scope", "global"),
                        ("team__isnull", True),
                        ("virtual_key__isnull", True),
                    ),
                    models.Q(
                        ("project__isnull", True),
                        ("scope", "team"),
                        ("team__isnull", False),
                        ("virtual_key__isnull", True),
                    ),
                    models.Q(
                        ("project__isnull", False),
                        ("scope", "project"),
                        ("team__isnull", True),
                        ("virtual_key__isnull", True),
                    ),
                    models.Q(
                        ("project__isnull", True),
                        ("scope", "key"),
                        ("team__isnull", True),
                        ("virtual_key__isnull", False),
                    ),
                    _connector="OR",
                ),
                name="budgets_budget_subject",
            ),
        ),
        migrations.AddConstraint(
            model_name="budget",
            constraint=models.CheckConstraint(condition=models.Q(("amount__gte", 0)), name="budgets_budget_amount"),
        ),
        migrations.AddConstraint(
            model_name="budget",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("unit", "usd"),
                    models.Q(
                        ("amount", django.db.models.functions.math.Floor("amount")),
                        ("rollover", django.db.models.functions.math.Floor("rollover")),
                    ),
                    _connector="OR",
                ),
                name="budgets_budget_whole",
                violation_error_message="Tokens and requests are whole numbers.",
            ),
        ),
        migrations.AddConstraint(
            model_name="budget",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("ends_at__gt", models.F("starts_at")), ("starts_at__isnull", False), ("window", "fixed")),
                    models.Q(
                        models.Q(("window", "fixed"), _negated=True),
                        ("ends_at__isnull", True),
                        ("starts_at__isnull", True),
                    ),
                    _connector="OR",
                ),
                name="budgets_budget_dates",
                violation_error_message="Fixed dates have a beginning and a later end; other windows have neither.",
            ),
        ),
        migrations.AddConstraint(
            model_name="budget",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("rollover", 0),
                    models.Q(("rollover__gt", 0), models.Q(("window__in", ("total", "fixed")), _negated=True)),
                    _connector="OR",
                ),
                name="budgets_budget_rollover",
                violation_error_message="Nothing follows such a window that could get what is left.",
            ),
        ),
        migrations.AddConstraint(
            model_name="budget",
            constraint=models.CheckConstraint(
                condition=models.Q(("fiscal_month__gte", 1), ("fiscal_month__lte", 12)),
                name="budgets_budget_fiscal_month",
            ),
        ),
        migrations.AddConstraint(
            model_name="limit",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("project__isnull", True),
                        ("scope", "global"),
                        ("team__isnull", True),
                        ("virtual_key__isnull", True),
                    ),
                    models.Q(
                        ("project__isnull", True),
                        ("scope", "team"),
                        ("team__isnull", False),
                        ("virtual_key__isnull", True),
                    ),
                    models.Q(
                        ("project__isnull", False),
                        ("scope", "project"),
                        ("team__isnull", True),
                        ("virtual_key__isnull", True),
                    ),
                    models.Q(
                        ("project__isnull", True),
                        ("scope", "key"),
                        ("team__isnull", True),
                        ("virtual_key__isnull", False),
                    ),
                    _connector="OR",
                ),
                name="budgets_limit_subject",
            ),
        ),
        migrations.AddConstraint(
            model_name="limit",
            constraint=models.CheckConstraint(condition=models.Q(("amount__gte", 0)), name="budgets_limit_amount"),
        ),
        migrations.AddConstraint(
            model_name="limit",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("metric", "spend"),
                    models.Q(
                        ("amount", django.db.models.functions.math.Floor("amount")),
                        models.Q(
                            ("burst__isnull", True),
                            ("burst", django.db.models.functions.math.Floor("burst")),
                            _connector="OR",
                        ),
                    ),
                    _connector="OR",
                ),
                name="budgets_limit_whole",
                violation_error_message="Only spend has fractions.",
            ),
        ),
        migrations.AddConstraint(
            model_name="limit",
            constraint=models.CheckConstraint(
                condition=models.Q(("window_s__gte", 1), ("window_s__lte", 2678400)), name="budgets_limit_window"
            ),
        ),
        migrations.AddConstraint(
            model_name="limit",
            constraint=models.UniqueConstraint(
                fields=(
                    "scope",
                    "team",
                    "project",
                    "virtual_key",
                    "environment",
                    "end_user",
                    "alias",
                    "model",
                    "provider",
                    "deployment",
                    "pool",
                    "tags",
                    "each",
                    "metric",
                    "window_s",
                    "is_observed",
                ),
                name="budgets_limit_once",
                nulls_distinct=False,
                violation_error_message="There is such a limit already: change that one.",
            ),
        ),
        migrations.AddField(
            model_name="increase",
            name="budget",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="increases", to="budgets.budget"
            ),
        ),
        migrations.AddField(
            model_name="threshold",
            name="alias",
            field=models.ForeignKey(
                blank=True,
                help_text="Downgrade: what answers instead.",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="routing.modelalias",
                verbose_name="cheaper alias",
            ),
        ),
        migrations.AddField(
            model_name="threshold",
            name="budget",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.CASCADE, related_name="thresholds", to="budgets.budget"
            ),
        ),
        migrations.AddConstraint(
            model_name="increase",
            constraint=models.CheckConstraint(
                condition=models.Q(("ends_at__gt", models.F("starts_at"))),
                name="budgets_increase_dates",
                violation_error_message="It ends after it begins.",
            ),
        ),
        migrations.AddConstraint(
            model_name="increase",
            constraint=models.CheckConstraint(condition=models.Q(("amount__gt", 0)), name="budgets_increase_amount"),
        ),
        migrations.AddConstraint(
            model_name="increase",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("decided_at__isnull", True), ("decided_by", ""), ("state", "requested")),
                    models.Q(
                        ("decided_at__isnull", False),
                        ("state__in", ("approved", "rejected")),
                        models.Q(("decided_by", ""), _negated=True),
                    ),
                    _connector="OR",
                ),
                name="budgets_increase_decided",
            ),
        ),
        migrations.AddConstraint(
            model_name="increase",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("requested_by", ""),
                    models.Q(("decided_by", models.F("requested_by")), _negated=True),
                    _connector="OR",
                ),
                name="budgets_increase_two_people",
                violation_error_message="Somebody else decides on what you ask for.",
            ),
        ),
        migrations.AddConstraint(
            model_name="threshold",
            constraint=models.UniqueConstraint(fields=("budget", "percent", "action"), name="budgets_threshold_once"),
        ),
        migrations.AddConstraint(
            model_name="threshold",
            constraint=models.CheckConstraint(
                condition=models.Q(("percent__gte", 1), ("percent__lte", 1000)), name="budgets_threshold_percent"
            ),
        ),
        migrations.AddConstraint(
            model_name="threshold",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("action", "throttle"), ("alias__isnull", True), ("per_minute__gte", 1)),
                    models.Q(("action", "downgrade"), ("alias__isnull", False), ("per_minute__isnull", True)),
                    models.Q(("action__in", ("alert", "block")), ("alias__isnull", True), ("per_minute__isnull", True)),
                    _connector="OR",
                ),
                name="budgets_threshold_action",
                violation_error_message="Throttling takes requests per minute, a downgrade the cheaper alias, and neither the other.",
            ),
        ),
        migrations.RunSQL(
            "UPDATE budgets_budget SET mode = 'soft' WHERE NOT is_hard",
            "UPDATE budgets_budget SET is_hard = (mode = 'hard')",
        ),
        migrations.SeparateDatabaseAndState(
            database_operations=[
                migrations.RunSQL(
                    "ALTER TABLE budgets_budget ALTER COLUMN is_hard SET DEFAULT true",
                    "ALTER TABLE budgets_budget ALTER COLUMN is_hard DROP DEFAULT",
                )
            ],
            state_operations=[migrations.RemoveField(model_name="budget", name="is_hard")],
        ),
    ]
