"""What a price came to: the tier served at, searches, terms, the provider's currency; and entries that correct others.

The database knows every default too: an ingest of the release before writes rows without them.
"""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("audit", "0006_whose_and_which")]

    operations = [
        migrations.AddField(
            model_name="usagerecord", name="searches", field=models.BigIntegerField(db_default=0, default=0)
        ),
        migrations.AddField(
            model_name="usagerecord", name="batch_requests", field=models.BigIntegerField(db_default=0, default=0)
        ),
        migrations.AddField(
            model_name="usagerecord",
            name="service_tier",
            field=models.CharField(blank=True, db_default="", default=""),
        ),
        migrations.AddField(
            model_name="usagerecord",
            name="inference_geo",
            field=models.CharField(blank=True, db_default="", default=""),
        ),
        migrations.AddField(
            model_name="usagerecord",
            name="terms",
            field=models.JSONField(
                blank=True,
                db_default=models.Value({}, models.JSONField()),
                default=dict,
                verbose_name="terms of the price",
            ),
        ),
        migrations.AddField(
            model_name="usagerecord",
            name="currency_cost",
            field=models.DecimalField(
                blank=True,
                decimal_places=9,
                max_digits=20,
                null=True,
                verbose_name="cost in the provider's currency",
            ),
        ),
        migrations.AddField(
            model_name="usagerecord",
            name="adjusts",
            field=models.UUIDField(blank=True, null=True, verbose_name="corrects the cost of"),
        ),
        migrations.AddIndex(
            model_name="usagerecord",
            index=models.Index(
                fields=["adjusts"], name="audit_usage_adjusts", condition=models.Q(adjusts__isnull=False)
            ),
        ),
    ]
