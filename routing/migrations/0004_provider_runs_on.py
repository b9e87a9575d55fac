"""Providers that finish, and bill, what nobody reads any more."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("routing", "0003_price_book"),
    ]

    operations = [
        migrations.AddField(
            model_name="provider",
            name="runs_on",
            field=models.BooleanField(
                "bills to the end",
                default=False,
                db_default=False,
                help_text=(
                    "It finishes, and bills, an answer whose reader has left. The gateway then reads it to the end, and holds all"
                    " that it may cost from the start."
                ),
            ),
        ),
    ]
