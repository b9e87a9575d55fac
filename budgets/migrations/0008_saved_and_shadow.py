"""The roll-ups know what cache hits saved, and how much of the cost is that of shadow calls. The triggers of 0002 add them to
the days. The database knows the defaults: an ingest of the release before writes hours without them."""

from django.db import migrations, models

USAGE_KEYS = ("team_id", "project_id", "virtual_key_id", "alias", "model", "provider")
USAGE_SUMS = ("requests", "errors", "input_tokens", "output_tokens", "cached_tokens", "cost_usd")
MORE_SUMS = ("saved_usd", "shadow_cost_usd")
HISTOGRAMS = ("latency_histogram", "first_token_histogram")
CHANGES = {
    "insert": "SELECT 1 AS sign, * FROM added",
    "update": "SELECT 1 AS sign, * FROM added UNION ALL SELECT -1, * FROM removed",
    "delete": "SELECT -1 AS sign, * FROM removed",
}


def functions(sums: tuple[str, ...]) -> str:
    """SQL of what the triggers on the hours do."""
    names = ", ".join(USAGE_KEYS)
    statements = []
    for operation, change in CHANGES.items():
        statements.append(f"""
CREATE OR REPLACE FUNCTION budgets_usageday_{operation}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO budgets_usageday AS total (id, day, {", ".join((*USAGE_KEYS, *sums, *HISTOGRAMS))})
    SELECT gen_random_uuid(), (hour AT TIME ZONE 'UTC')::date, {names},
        {", ".join(f"sum(sign * {name})" for name in sums)},
        {", ".join(f"budgets_sum_histograms({name}, sign)" for name in HISTOGRAMS)}
    FROM ({change}) AS change GROUP BY 2, {names}
    ON CONFLICT (day, {names}) DO UPDATE SET
        {", ".join(f"{name} = total.{name} + excluded.{name}" for name in sums)},
        {", ".join(f"{name} = budgets_add_histograms(total.{name}, excluded.{name}, 1)" for name in HISTOGRAMS)};
    RETURN NULL;
END
$$;""")
    return "\n".join(statements)


def money() -> models.DecimalField:
    return models.DecimalField(decimal_places=9, max_digits=24, db_default=0, default=0)


class Migration(migrations.Migration):
    dependencies = [("budgets", "0007_checks_without_nulls")]

    operations = [
        *(
            migrations.AddField(model_name=model, name=name, field=money())
            for model in ("usagehour", "usageday")
            for name in MORE_SUMS
        ),
        migrations.RunSQL(functions((*USAGE_SUMS, *MORE_SUMS)), functions(USAGE_SUMS)),
    ]
