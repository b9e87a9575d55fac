"""What a re-rate has changed, kept by model and team: to add it up anew takes long where it was millions of records."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("routing", "0004_provider_runs_on")]

    operations = [
        migrations.AddField(
            model_name="rerate", name="sums", field=models.JSONField(blank=True, default=dict, editable=False)
        ),
    ]
