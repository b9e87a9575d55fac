from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("budgets", "0009_rests_until"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="delivery",
            options={"default_permissions": ("view",), "ordering": ["-id"], "verbose_name_plural": "deliveries"},
        ),
    ]
