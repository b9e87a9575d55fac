"""The roll-ups by day, kept by triggers: a day is the sum of its hours, whoever writes those.

A month of hours is some 700 times as many rows as there are keys and models in use; of days, 30. The dashboards read days.
"""

import django.contrib.postgres.fields
from django.db import migrations, models

import audit.ids

USAGE_KEYS = ("team_id", "project_id", "virtual_key_id", "alias", "model", "provider")
USAGE_SUMS = ("requests", "errors", "input_tokens", "output_tokens", "cached_tokens", "cost_usd")
HISTOGRAMS = ("latency_histogram", "first_token_histogram")
TAG_KEYS = ("team_id", "project_id", "tag_key", "tag_value")
TAG_SUMS = ("requests", "tokens", "cost_usd")

ADD_HISTOGRAMS = """
CREATE FUNCTION budgets_add_histograms(total bigint[], change bigint[], sign integer) RETURNS bigint[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(array_agg(coalesce(a, 0) + sign * coalesce(b, 0) ORDER BY position), '{}')
    FROM unnest(total, change) WITH ORDINALITY AS bucket (a, b, position)
$$;
CREATE AGGREGATE budgets_sum_histograms(bigint[], integer)
    (SFUNC = budgets_add_histograms, STYPE = bigint[], INITCOND = '{}');
"""

# What a statement changed, by the names that its trigger gives to the rows before and after.
CHANGES = {
    "insert": ("NEW TABLE AS added", "SELECT 1 AS sign, * FROM added"),
    "update": (
        "NEW TABLE AS added OLD TABLE AS removed",
        "SELECT 1 AS sign, * FROM added UNION ALL SELECT -1, * FROM removed",
    ),
    "delete": ("OLD TABLE AS removed", "SELECT -1 AS sign, * FROM removed"),
}


def add_to_days(hours: str, days: str, keys: tuple[str, ...], sums: tuple[str, ...], histograms: tuple[str, ...]) -> str:
    """SQL that makes `days` out of the `hours` there are, and the triggers that keep them so."""
    names = ", ".join(keys)
    insert = (
        f"INSERT INTO {days} AS total (id, day, {', '.join((*keys, *sums, *histograms))}) "
        f"SELECT gen_random_uuid(), (hour AT TIME ZONE 'UTC')::date, {names}, "
        + ", ".join(
            [f"sum(sign * {name})" for name in sums] + [f"budgets_sum_histograms({name}, sign)" for name in histograms]
        )
        + f" FROM (%s) AS change GROUP BY 2, {names} ON CONFLICT (day, {names}) DO UPDATE SET "
        + ", ".join(
            [f"{name} = total.{name} + excluded.{name}" for name in sums]
            + [f"{name} = budgets_add_histograms(total.{name}, excluded.{name}, 1)" for name in histograms]
        )
        + ";"
    )
    statements = [insert % f"SELECT 1 AS sign, * FROM {hours}"]
    for operation, (transition, change) in CHANGES.items():
        statements.append(f"""
CREATE FUNCTION {days}_{operation}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    {insert % change}
    RETURN NULL;
END
$$;
CREATE TRIGGER days_{operation} AFTER {operation.upper()} ON {hours} REFERENCING {transition}
    FOR EACH STATEMENT EXECUTE FUNCTION {days}_{operation}();""")
    # Not TRUNCATE: the statement that fires this may be truncating the days as well.
    statements.append(f"""
CREATE FUNCTION {days}_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM {days};
    RETURN NULL;
END
$$;
CREATE TRIGGER days_truncate AFTER TRUNCATE ON {hours} FOR EACH STATEMENT EXECUTE FUNCTION {days}_truncate();""")
    return "\n".join(statements)


class Migration(migrations.Migration):
    dependencies = [("budgets", "0001_initial")]

    operations = [
        migrations.CreateModel(
            name="UsageDay",
            fields=[
                ("id", models.UUIDField(default=audit.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ("team_id", models.UUIDField()),
                ("project_id", models.UUIDField()),
                ("virtual_key_id", models.UUIDField()),
                ("alias", models.CharField()),
                ("model", models.CharField()),
                ("provider", models.CharField()),
                ("requests", models.BigIntegerField(default=0)),
                ("errors", models.BigIntegerField(default=0)),
                ("input_tokens", models.BigIntegerField(default=0)),
                ("output_tokens", models.BigIntegerField(default=0)),
                ("cached_tokens", models.BigIntegerField(default=0)),
                ("cost_usd", models.DecimalField(decimal_places=9, default=0, max_digits=24)),
                (
                    "latency_histogram",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.BigIntegerField(), default=list, size=None
                    ),
                ),
                (
                    "first_token_histogram",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.BigIntegerField(), default=list, size=None
                    ),
                ),
                ("day", models.DateField()),
            ],
            options={
                "ordering": ["-day"],
                "default_permissions": (),
                "indexes": [
                    models.Index(fields=["team_id", "day"], name="budgets_usageday_team"),
                    models.Index(fields=["project_id", "day"], name="budgets_usageday_project"),
                    models.Index(fields=["virtual_key_id", "day"], name="budgets_usageday_key"),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("day", "team_id", "project_id", "virtual_key_id", "alias", "model", "provider"),
                        name="budgets_usageday_once",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="UsageTagDay",
            fields=[
                ("id", models.UUIDField(default=audit.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ("team_id", models.UUIDField()),
                ("project_id", models.UUIDField()),
                ("tag_key", models.CharField()),
                ("tag_value", models.CharField()),
                ("requests", models.BigIntegerField(default=0)),
                ("tokens", models.BigIntegerField(default=0)),
                ("cost_usd", models.DecimalField(decimal_places=9, default=0, max_digits=24)),
                ("day", models.DateField()),
            ],
            options={
                "ordering": ["-day"],
                "default_permissions": (),
                "indexes": [models.Index(fields=["tag_key", "day"], name="budgets_usagetagday_key")],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("day", "team_id", "project_id", "tag_key", "tag_value"), name="budgets_usagetagday_once"
                    )
                ],
            },
        ),
        migrations.RunSQL(ADD_HISTOGRAMS),
        migrations.RunSQL(add_to_days("budgets_usagehour", "budgets_usageday", USAGE_KEYS, USAGE_SUMS, HISTOGRAMS)),
        migrations.RunSQL(add_to_days("budgets_usagetaghour", "budgets_usagetagday", TAG_KEYS, TAG_SUMS, ())),
    ]
