"""What was voided is found at once: budgets of requests are counted without it."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("audit", "0007_what_a_price_came_to")]

    operations = [
        migrations.AddIndex(
            model_name="usagerecord",
            index=models.Index(
                condition=models.Q(("state", "voided")), fields=["admitted_at"], name="audit_usage_voided"
            ),
        ),
    ]
