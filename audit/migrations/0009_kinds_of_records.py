"""Cache hits with what they saved, and shadow calls. The database knows the defaults too: an ingest of the release before
writes rows without them."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("audit", "0008_voided_index")]

    operations = [
        migrations.AddField(
            model_name="usagerecord",
            name="kind",
            field=models.CharField(
                choices=[("attempt", "attempt"), ("cache_hit", "cache hit"), ("shadow", "shadow call")],
                db_default="attempt",
                default="attempt",
            ),
        ),
        migrations.AddField(
            model_name="usagerecord",
            name="saved_usd",
            field=models.DecimalField(decimal_places=9, max_digits=20, db_default=0, default=0),
        ),
    ]
