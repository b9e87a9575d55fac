"""Which budgets an attempt was counted in. The database knows the default too: an ingest of the release before writes rows
without it."""

import django.contrib.postgres.fields
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("audit", "0009_kinds_of_records")]

    operations = [
        migrations.AddField(
            model_name="usagerecord",
            name="budget_ids",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.UUIDField(),
                blank=True,
                db_default=[],
                default=list,
                size=None,
                verbose_name="counted in",
            ),
        ),
    ]
