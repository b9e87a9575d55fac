"""Whose call it was, and of which pool: what budgets are about. The database knows their default too."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("audit", "0005_receipts")]

    operations = [
        migrations.AddField(
            model_name="usagerecord",
            name="end_user",
            field=models.CharField(blank=True, db_default="", default=""),
        ),
        migrations.AddField(
            model_name="usagerecord",
            name="downgraded_from",
            field=models.CharField(blank=True, db_default="", default=""),
        ),
        migrations.AddField(
            model_name="usagerecord",
            name="pool",
            field=models.CharField("credential pool", blank=True, db_default="", default=""),
        ),
    ]
