"""Makes the ledger a table partitioned by month, and both tables of this package append-only.

The columns of the ledger are taken over from the table that 0001 made, so that they are written down once. Its primary key
becomes `(attempt_id, admitted_at)`: PostgreSQL wants the partition key in it; for Django `attempt_id` is the key.
"""

import django.contrib.postgres.indexes
from django.db import migrations, models

PARTITIONED = """
ALTER TABLE audit_usagerecord RENAME TO audit_usagerecord_plain;
CREATE TABLE audit_usagerecord (
    LIKE audit_usagerecord_plain INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
    CONSTRAINT audit_usagerecord_once PRIMARY KEY (attempt_id, admitted_at)
) PARTITION BY RANGE (admitted_at);
DROP TABLE audit_usagerecord_plain;
"""

REFUSE = """
CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END
$$;
"""

# A row in suspense may be resolved, once; what says which attempt it is and whose stays as it was.
RESOLVE = """
CREATE FUNCTION audit_usagerecord_resolve() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.state <> 'suspense' OR NEW.state NOT IN ('posted', 'voided') THEN
        RAISE EXCEPTION '% is append-only: only a row in suspense may change, to posted or voided', TG_TABLE_NAME
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF (OLD.attempt_id, OLD.request_id, OLD.attempt_number, OLD.admitted_at, OLD.team_id, OLD.project_id,
        OLD.virtual_key_id, OLD.held_usd, OLD.ingested_at)
        IS DISTINCT FROM
       (NEW.attempt_id, NEW.request_id, NEW.attempt_number, NEW.admitted_at, NEW.team_id, NEW.project_id,
        NEW.virtual_key_id, NEW.held_usd, NEW.ingested_at) THEN
        RAISE EXCEPTION '% is append-only: resolving a row does not change whose it is', TG_TABLE_NAME
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END
$$;
"""

AUDIT_ENTRY = """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON audit_auditentry
    FOR EACH ROW EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON audit_auditentry
    FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
"""

# PostgreSQL gives the row triggers to every partition, also to later ones; a statement trigger each must have its own.
USAGE_RECORD = """
CREATE TRIGGER append_only BEFORE DELETE ON audit_usagerecord
    FOR EACH ROW EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER append_only_update BEFORE UPDATE ON audit_usagerecord
    FOR EACH ROW EXECUTE FUNCTION audit_usagerecord_resolve();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON audit_usagerecord
    FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
CREATE TABLE audit_usagerecord_default PARTITION OF audit_usagerecord DEFAULT;
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON audit_usagerecord_default
    FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
"""

# A month that already has rows in the default partition stays there: ledger rows are never moved.
ENSURE_PARTITIONS = """
CREATE FUNCTION audit_ensure_partitions(months_ahead integer) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    partition_name text;
    month_start timestamptz;
    month_end timestamptz;
    made text[] := '{}';
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('audit_ensure_partitions'));
    FOR ahead IN 0..months_ahead LOOP
        month_start := (date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => ahead)) AT TIME ZONE 'UTC';
        month_end := (date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => ahead + 1)) AT TIME ZONE 'UTC';
        partition_name := 'audit_usagerecord_' || to_char(month_start AT TIME ZONE 'UTC', 'YYYY_MM');
        CONTINUE WHEN to_regclass(partition_name) IS NOT NULL;
        CONTINUE WHEN EXISTS (
            SELECT FROM audit_usagerecord_default WHERE admitted_at >= month_start AND admitted_at < month_end
        );
        EXECUTE format(
            'CREATE TABLE %I PARTITION OF audit_usagerecord FOR VALUES FROM (%L) TO (%L)',
            partition_name, month_start, month_end
        );
        EXECUTE format(
            'CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()',
            partition_name
        );
        made := made || partition_name;
    END LOOP;
    RETURN made;
END
$$;
"""


class Migration(migrations.Migration):
    dependencies = [("audit", "0001_initial")]

    operations = [
        migrations.RunSQL(PARTITIONED),
        migrations.AddIndex("usagerecord", models.Index(fields=["-admitted_at", "-attempt_id"], name="audit_usage_at")),
        migrations.AddIndex("usagerecord", models.Index(fields=["team_id", "-admitted_at"], name="audit_usage_team")),
        migrations.AddIndex("usagerecord", models.Index(fields=["project_id", "-admitted_at"], name="audit_usage_project")),
        migrations.AddIndex("usagerecord", models.Index(fields=["virtual_key_id", "-admitted_at"], name="audit_usage_key")),
        migrations.AddIndex("usagerecord", models.Index(fields=["request_id"], name="audit_usage_request")),
        migrations.AddIndex(
            "usagerecord",
            models.Index(fields=["admitted_at"], name="audit_usage_suspense", condition=models.Q(state="suspense")),
        ),
        migrations.AddIndex(
            "usagerecord",
            django.contrib.postgres.indexes.GinIndex(
                fields=["tags"], name="audit_usage_tags", opclasses=["jsonb_path_ops"]
            ),
        ),
        migrations.RunSQL(REFUSE),
        migrations.RunSQL(RESOLVE),
        migrations.RunSQL(AUDIT_ENTRY),
        migrations.RunSQL(USAGE_RECORD),
        migrations.RunSQL(ENSURE_PARTITIONS),
        migrations.RunSQL("SELECT audit_ensure_partitions(3)"),
    ]
