"""The price book: tiers, contracts, feeds of exchange rates, proposals, and past periods reckoned again."""

import audit.ids
import django.core.validators
import django.db.models.deletion
import django.utils.timezone
from decimal import Decimal
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("routing", "0002_every_provider"),
    ]

    operations = [
        migrations.CreateModel(
            name="Contract",
            fields=[
                ("id", models.UUIDField(default=audit.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=100)),
                ("effective_from", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "effective_until",
                    models.DateTimeField(blank=True, help_text="Empty: until another supersedes it.", null=True),
                ),
                (
                    "discount_percent",
                    models.DecimalField(
                        decimal_places=2,
                        default=0,
                        help_text="Off every rate, from the month's first cent.",
                        max_digits=5,
                        validators=[
                            django.core.validators.MinValueValidator(0),
                            django.core.validators.MaxValueValidator(100),
                        ],
                    ),
                ),
                (
                    "commitment_usd",
                    models.DecimalField(
                        blank=True,
                        decimal_places=2,
                        help_text="Paid also where less was used: the shortfall is on the invoice, not in the cost of requests.",
                        max_digits=18,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(0)],
                        verbose_name="monthly commitment (USD)",
                    ),
                ),
                (
                    "free_tokens",
                    models.PositiveBigIntegerField(
                        blank=True,
                        help_text="Input and output together.",
                        null=True,
                        verbose_name="free tokens a month",
                    ),
                ),
                (
                    "free_requests",
                    models.PositiveBigIntegerField(blank=True, null=True, verbose_name="free requests a month"),
                ),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
            ],
            options={
                "ordering": ["-effective_from"],
            },
        ),
        migrations.CreateModel(
            name="ContractStanding",
            fields=[
                ("id", models.UUIDField(default=audit.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ("month", models.DateField(help_text="Its first day (UTC).")),
                (
                    "discount_percent",
                    models.DecimalField(
                        decimal_places=2,
                        default=0,
                        max_digits=5,
                        validators=[
                            django.core.validators.MinValueValidator(0),
                            django.core.validators.MaxValueValidator(100),
                        ],
                    ),
                ),
                ("has_free_tokens", models.BooleanField(default=False)),
                ("has_free_requests", models.BooleanField(default=False)),
                ("spent_usd", models.DecimalField(decimal_places=9, default=0, max_digits=24)),
                ("tokens", models.BigIntegerField(default=0)),
                ("requests", models.BigIntegerField(default=0)),
            ],
            options={
                "ordering": ["-month"],
                "default_permissions": ("view",),
            },
        ),
        migrations.CreateModel(
            name="ContractTier",
            fields=[
                ("id", models.UUIDField(default=audit.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                (
                    "from_usd",
                    models.DecimalField(
                        decimal_places=2,
                        max_digits=18,
                        validators=[django.core.validators.MinValueValidator(Decimal("0.01"))],
                        verbose_name="from a spend of (USD)",
                    ),
                ),
                (
                    "discount_percent",
                    models.DecimalField(
                        decimal_places=2,
                        default=0,
                        max_digits=5,
                        validators=[
                            django.core.validators.MinValueValidator(0),
                            django.core.validators.MaxValueValidator(100),
                        ],
                    ),
                ),
            ],
            options={
                "ordering": ["from_usd"],
            },
        ),
        migrations.CreateModel(
            name="ExchangeRateFeed",
            fields=[
                ("id", models.UUIDField(default=audit.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ("name", models.CharField(max_length=100, unique=True)),
                (
                    "url",
                    models.CharField(
                        help_text="Answers CSV (currency,usd_per_unit,effective_from) or JSON: {base, date, rates}. Only currencies that a provider here has are taken.",
                        max_length=500,
                        verbose_name="URL",
                    ),
                ),
                ("may_be_private", models.BooleanField(default=False, verbose_name="is on a private network")),
                ("is_active", models.BooleanField(default=True)),
                ("fetched_at", models.DateTimeField(blank=True, editable=False, null=True)),
                ("problem", models.CharField(blank=True, default="", editable=False, max_length=300)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
            ],
            options={
                "ordering": ["name"],
            },
        ),
        migrations.CreateModel(
            name="PriceProposal",
            fields=[
                ("id", models.UUIDField(default=audit.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ("source", models.CharField(max_length=200)),
                ("effective_from", models.DateTimeField()),
                ("rates", models.JSONField()),
                (
                    "differences",
                    models.JSONField(help_text="[what, before, after]; before is null where there is no price yet."),
                ),
                (
                    "remarks",
                    models.JSONField(blank=True, default=list, help_text="What the list says and no price here can."),
                ),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("proposed", "proposed"),
                            ("approved", "approved"),
                            ("rejected", "rejected"),
                            ("outdated", "outdated"),
                        ],
                        default="proposed",
                        max_length=16,
                    ),
                ),
                ("decided_by", models.CharField(blank=True, default="", max_length=200)),
                ("decided_at", models.DateTimeField(blank=True, null=True)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
            ],
            options={
                "ordering": ["-created_at", "provider", "model"],
            },
        ),
        migrations.CreateModel(
            name="PriceTier",
            fields=[
                ("id", models.UUIDField(default=audit.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                (
                    "service_tier",
                    models.SlugField(
                        blank=True,
                        help_text="batch, flex, priority, fast, … as the provider calls it. Empty: standard.",
                        max_length=64,
                    ),
                ),
                (
                    "above_input_tokens",
                    models.PositiveIntegerField(
                        default=0, help_text="For the whole of a request with more input than that. 0: of any length."
                    ),
                ),
                (
                    "percent",
                    models.PositiveSmallIntegerField(
                        default=100,
                        help_text="Of the price's rates, where no other is given.",
                        validators=[django.core.validators.MaxValueValidator(10000)],
                    ),
                ),
                (
                    "input",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        max_digits=18,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(0)],
                        verbose_name="input",
                    ),
                ),
                (
                    "output",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        max_digits=18,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(0)],
                        verbose_name="output",
                    ),
                ),
                (
                    "cached_input",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        max_digits=18,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(0)],
                        verbose_name="cached input",
                    ),
                ),
                (
                    "cache_write",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        max_digits=18,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(0)],
                        verbose_name="cache write",
                    ),
                ),
                (
                    "cache_write_1h",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        max_digits=18,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(0)],
                        verbose_name="cache write for an hour",
                    ),
                ),
                (
                    "reasoning",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        max_digits=18,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(0)],
                        verbose_name="reasoning",
                    ),
                ),
                (
                    "input_audio",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        max_digits=18,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(0)],
                        verbose_name="audio input",
                    ),
                ),
                (
                    "input_image",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        max_digits=18,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(0)],
                        verbose_name="image input",
                    ),
                ),
                (
                    "output_audio",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        max_digits=18,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(0)],
                        verbose_name="audio output",
                    ),
                ),
                (
                    "output_image",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        max_digits=18,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(0)],
                        verbose_name="image output",
                    ),
                ),
                (
                    "per_request",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        max_digits=18,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(0)],
                        verbose_name="per request",
                    ),
                ),
                (
                    "per_tool_call",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        max_digits=18,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(0)],
                        verbose_name="per tool call",
                    ),
                ),
                (
                    "per_search",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        max_digits=18,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(0)],
                        verbose_name="per search",
                    ),
                ),
                (
                    "per_unit",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        max_digits=18,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(0)],
                        verbose_name="per unit",
                    ),
                ),
            ],
            options={
                "ordering": ["service_tier", "above_input_tokens"],
            },
        ),
        migrations.CreateModel(
            name="Rerate",
            fields=[
                ("id", models.UUIDField(default=audit.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ("starts_at", models.DateTimeField(verbose_name="from")),
                ("ends_at", models.DateTimeField(help_text="Exclusive.", verbose_name="until")),
                (
                    "discount_percent",
                    models.DecimalField(
                        blank=True,
                        decimal_places=2,
                        help_text="What the invoice gave. Empty: as each record has it.",
                        max_digits=5,
                        null=True,
                        validators=[
                            django.core.validators.MinValueValidator(0),
                            django.core.validators.MaxValueValidator(100),
                        ],
                        verbose_name="discount (percent)",
                    ),
                ),
                (
                    "usd_per_unit",
                    models.DecimalField(
                        blank=True,
                        decimal_places=9,
                        help_text="That of the invoice. Empty: as each record has it.",
                        max_digits=18,
                        null=True,
                        validators=[django.core.validators.MinValueValidator(Decimal("1E-9"))],
                        verbose_name="exchange rate (USD per unit)",
                    ),
                ),
                ("note", models.CharField(help_text="Why: the invoice, or the mistake.", max_length=300)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("proposed", "proposed"),
                            ("approved", "approved"),
                            ("rejected", "rejected"),
                            ("applied", "applied"),
                        ],
                        default="proposed",
                        editable=False,
                        max_length=16,
                    ),
                ),
                ("asked_by", models.CharField(editable=False, max_length=200)),
                ("asked_by_id", models.CharField(editable=False, max_length=64)),
                ("decided_by", models.CharField(blank=True, default="", editable=False, max_length=200)),
                ("applied_at", models.DateTimeField(blank=True, editable=False, null=True)),
                ("records", models.BigIntegerField(default=0, editable=False)),
                ("before_usd", models.DecimalField(decimal_places=9, default=0, editable=False, max_digits=24)),
                ("after_usd", models.DecimalField(decimal_places=9, default=0, editable=False, max_digits=24)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now, editable=False)),
            ],
            options={
                "ordering": ["-created_at"],
            },
        ),
        migrations.RemoveConstraint(
            model_name="price",
            name="routing_price_once",
        ),
        migrations.RemoveConstraint(
            model_name="price",
            name="routing_price_not_negative",
        ),
        migrations.AddField(
            model_name="deployment",
            name="auto_tier",
            field=models.SlugField(
                blank=True,
                default="",
                help_text="What the provider serves a request at that names no service tier, where its project is set so: priority.",
                max_length=64,
                verbose_name="tier of auto",
            ),
        ),
        migrations.AddField(
            model_name="deployment",
            name="unpriced_hold",
            field=models.DecimalField(
                blank=True,
                decimal_places=9,
                help_text="Held and charged for each request while no price is in force. Empty: such requests are refused.",
                max_digits=18,
                null=True,
                validators=[django.core.validators.MinValueValidator(0)],
                verbose_name="hold without a price (USD)",
            ),
        ),
        migrations.AddField(
            model_name="deployment",
            name="uplift_percent",
            field=models.DecimalField(
                decimal_places=2,
                default=0,
                help_text="What this region costs more than the price says: on everything but runs of the provider's tools.",
                max_digits=6,
                validators=[django.core.validators.MinValueValidator(0)],
                verbose_name="regional uplift (percent)",
            ),
        ),
        migrations.AddField(
            model_name="exchangerate",
            name="source",
            field=models.CharField(blank=True, default="", editable=False, max_length=200),
        ),
        migrations.AddField(
            model_name="price",
            name="deployment",
            field=models.ForeignKey(
                blank=True,
                help_text="Only for this deployment, and there before any other price. Empty: for every deployment of the model.",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="prices",
                to="routing.deployment",
            ),
        ),
        migrations.AddField(
            model_name="price",
            name="geo_percent",
            field=models.PositiveSmallIntegerField(
                blank=True,
                default=100,
                help_text="What tokens cost that a request wants processed in one geography (Anthropic's inference_geo).",
                validators=[
                    django.core.validators.MinValueValidator(1),
                    django.core.validators.MaxValueValidator(1000),
                ],
                verbose_name="in a geography, percent",
            ),
        ),
        migrations.AddField(
            model_name="price",
            name="per_search",
            field=models.DecimalField(
                blank=True,
                decimal_places=9,
                help_text="Each search of the web. Empty: as a run of any tool.",
                max_digits=18,
                null=True,
                validators=[django.core.validators.MinValueValidator(0)],
                verbose_name="per search",
            ),
        ),
        migrations.AddField(
            model_name="price",
            name="reasoning",
            field=models.DecimalField(
                blank=True,
                decimal_places=9,
                help_text="Empty: as output.",
                max_digits=18,
                null=True,
                validators=[django.core.validators.MinValueValidator(0)],
                verbose_name="reasoning",
            ),
        ),
        migrations.AddIndex(
            model_name="price",
            index=models.Index(fields=["model", "provider", "-effective_from"], name="routing_price_in_force"),
        ),
        migrations.AddConstraint(
            model_name="price",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("cache_write_1h__gte", 0),
                    ("cache_write__gte", 0),
                    ("cached_input__gte", 0),
                    ("input__gte", 0),
                    ("input_audio__gte", 0),
                    ("input_image__gte", 0),
                    ("output__gte", 0),
                    ("output_audio__gte", 0),
                    ("output_image__gte", 0),
                    ("per_request__gte", 0),
                    ("per_search__gte", 0),
                    ("per_tool_call__gte", 0),
                    ("per_unit__gte", 0),
                    ("reasoning__gte", 0),
                ),
                name="routing_price_not_negative",
            ),
        ),
        migrations.AddConstraint(
            model_name="price",
            constraint=models.CheckConstraint(
                condition=models.Q(("geo_percent__gte", 1), ("geo_percent__lte", 1000)),
                name="routing_price_geo_percent",
            ),
        ),
        migrations.AddField(
            model_name="contract",
            name="model",
            field=models.ForeignKey(
                blank=True,
                help_text="Empty: all of the provider's.",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="contracts",
                to="routing.model",
            ),
        ),
        migrations.AddField(
            model_name="contract",
            name="provider",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="contracts", to="routing.provider"
            ),
        ),
        migrations.AddField(
            model_name="contractstanding",
            name="contract",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="standings", to="routing.contract"
            ),
        ),
        migrations.AddField(
            model_name="contracttier",
            name="contract",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="tiers", to="routing.contract"
            ),
        ),
        migrations.AddField(
            model_name="priceproposal",
            name="model",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="proposals", to="routing.model"
            ),
        ),
        migrations.AddField(
            model_name="priceproposal",
            name="price",
            field=models.OneToOneField(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="proposal",
                to="routing.price",
            ),
        ),
        migrations.AddField(
            model_name="priceproposal",
            name="provider",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="proposals", to="routing.provider"
            ),
        ),
        migrations.AddField(
            model_name="pricetier",
            name="price",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="tiers", to="routing.price"
            ),
        ),
        migrations.AddField(
            model_name="rerate",
            name="model",
            field=models.ForeignKey(
                blank=True,
                help_text="Empty: all of the provider's.",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                to="routing.model",
            ),
        ),
        migrations.AddField(
            model_name="rerate",
            name="price",
            field=models.ForeignKey(
                blank=True,
                help_text="Empty: the price that the book says today was in force at each record's moment.",
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                to="routing.price",
            ),
        ),
        migrations.AddField(
            model_name="rerate",
            name="provider",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="rerates", to="routing.provider"
            ),
        ),
        migrations.AddConstraint(
            model_name="contract",
            constraint=models.CheckConstraint(
                condition=models.Q(("discount_percent__gte", 0), ("discount_percent__lte", 100)),
                name="routing_contract_discount",
            ),
        ),
        migrations.AddConstraint(
            model_name="contract",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("effective_until__isnull", True),
                    ("effective_until__gt", models.F("effective_from")),
                    _connector="OR",
                ),
                name="routing_contract_period",
            ),
        ),
        migrations.AddConstraint(
            model_name="contractstanding",
            constraint=models.UniqueConstraint(fields=("contract", "month"), name="routing_contractstanding_once"),
        ),
        migrations.AddConstraint(
            model_name="contracttier",
            constraint=models.UniqueConstraint(fields=("contract", "from_usd"), name="routing_contracttier_once"),
        ),
        migrations.AddConstraint(
            model_name="contracttier",
            constraint=models.CheckConstraint(
                condition=models.Q(("discount_percent__gte", 0), ("discount_percent__lte", 100)),
                name="routing_contracttier_discount",
            ),
        ),
        migrations.AddConstraint(
            model_name="priceproposal",
            constraint=models.UniqueConstraint(
                condition=models.Q(("state", "proposed")),
                fields=("model", "provider"),
                name="routing_priceproposal_one_open",
            ),
        ),
        migrations.AddConstraint(
            model_name="pricetier",
            constraint=models.UniqueConstraint(
                fields=("price", "service_tier", "above_input_tokens"), name="routing_pricetier_once"
            ),
        ),
        migrations.AddConstraint(
            model_name="pricetier",
            constraint=models.CheckConstraint(
                condition=models.Q(("above_input_tokens", 0), ("service_tier", ""), _negated=True),
                name="routing_pricetier_is_another",
            ),
        ),
        migrations.AddConstraint(
            model_name="pricetier",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("input__isnull", True), ("input__gte", 0), _connector="OR"),
                    models.Q(("output__isnull", True), ("output__gte", 0), _connector="OR"),
                    models.Q(("cached_input__isnull", True), ("cached_input__gte", 0), _connector="OR"),
                    models.Q(("cache_write__isnull", True), ("cache_write__gte", 0), _connector="OR"),
                    models.Q(("cache_write_1h__isnull", True), ("cache_write_1h__gte", 0), _connector="OR"),
                    models.Q(("reasoning__isnull", True), ("reasoning__gte", 0), _connector="OR"),
                    models.Q(("input_audio__isnull", True), ("input_audio__gte", 0), _connector="OR"),
                    models.Q(("input_image__isnull", True), ("input_image__gte", 0), _connector="OR"),
                    models.Q(("output_audio__isnull", True), ("output_audio__gte", 0), _connector="OR"),
                    models.Q(("output_image__isnull", True), ("output_image__gte", 0), _connector="OR"),
                    models.Q(("per_request__isnull", True), ("per_request__gte", 0), _connector="OR"),
                    models.Q(("per_tool_call__isnull", True), ("per_tool_call__gte", 0), _connector="OR"),
                    models.Q(("per_search__isnull", True), ("per_search__gte", 0), _connector="OR"),
                    models.Q(("per_unit__isnull", True), ("per_unit__gte", 0), _connector="OR"),
                ),
                name="routing_pricetier_not_negative",
            ),
        ),
        migrations.AddConstraint(
            model_name="rerate",
            constraint=models.CheckConstraint(
                condition=models.Q(("ends_at__gt", models.F("starts_at"))), name="routing_rerate_period"
            ),
        ),
        # What a record was reckoned at can be shown for ever: a new price supersedes, and none is edited, whoever asks.
        migrations.RunSQL(
            sql="""
            CREATE FUNCTION routing_refuse_edit() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN RAISE EXCEPTION '% is never edited: a new row supersedes', TG_TABLE_NAME; END $$;
            CREATE TRIGGER routing_price_is_final BEFORE UPDATE ON routing_price
                FOR EACH ROW EXECUTE FUNCTION routing_refuse_edit();
            CREATE TRIGGER routing_pricetier_is_final BEFORE UPDATE ON routing_pricetier
                FOR EACH ROW EXECUTE FUNCTION routing_refuse_edit();
            """,
            reverse_sql="""
            DROP TRIGGER routing_price_is_final ON routing_price;
            DROP TRIGGER routing_pricetier_is_final ON routing_pricetier;
            DROP FUNCTION routing_refuse_edit();
            """,
        ),
    ]
