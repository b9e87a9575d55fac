"""The verifier rests after a run that took long. No value is needed: a verifier of the release before knows no rest."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("budgets", "0008_saved_and_shadow")]

    operations = [
        migrations.AddField(model_name="verification", name="rests_until", field=models.DateTimeField(null=True)),
    ]
