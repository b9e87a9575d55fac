"""Since when a budget rolls over: what its windows left before is not known."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("budgets", "0004_rules_of_any_subject")]

    operations = [
        migrations.AddField(
            model_name="budget",
            name="rolls_over_since",
            field=models.DateTimeField(editable=False, null=True),
        ),
    ]
