from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [
        ("routing", "0005_rerate_sums"),
    ]

    operations = [
        migrations.AlterModelOptions(
            name="rerate",
            options={"ordering": ["-created_at"], "verbose_name": "re-rate"},
        ),
    ]
