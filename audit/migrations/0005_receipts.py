"""What a receipt tells besides: the candidates of the route, and where tags came from. Both default in the database too."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("audit", "0004_upstream_id")]

    operations = [
        migrations.AddField(
            model_name="usagerecord",
            name="tag_sources",
            field=models.JSONField(blank=True, db_default=models.Value({}, models.JSONField()), default=dict),
        ),
        migrations.AddField(
            model_name="usagerecord",
            name="route",
            field=models.JSONField(blank=True, db_default=models.Value([], models.JSONField()), default=list),
        ),
    ]
