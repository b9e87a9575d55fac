"""Two checks that a null passed: a fixed window without an end, and throttling without a rate."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('budgets', '0006_alerts'),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name='budget',
            name='budgets_budget_dates',
        ),
        migrations.RemoveConstraint(
            model_name='threshold',
            name='budgets_threshold_action',
        ),
        migrations.AddConstraint(
            model_name='budget',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('ends_at__gt', models.F('starts_at')), ('ends_at__isnull', False), ('starts_at__isnull', False), ('window', 'fixed')), models.Q(models.Q(('window', 'fixed'), _negated=True), ('ends_at__isnull', True), ('starts_at__isnull', True)), _connector='OR'), name='budgets_budget_dates', violation_error_message='Fixed dates have a beginning and a later end; other windows have neither.'),
        ),
        migrations.AddConstraint(
            model_name='threshold',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('action', 'throttle'), ('alias__isnull', True), ('per_minute__gte', 1), ('per_minute__isnull', False)), models.Q(('action', 'downgrade'), ('alias__isnull', False), ('per_minute__isnull', True)), models.Q(('action__in', ('alert', 'block')), ('alias__isnull', True), ('per_minute__isnull', True)), _connector='OR'), name='budgets_threshold_action', violation_error_message='Throttling takes requests per minute, a downgrade the cheaper alias, and neither the other.'),
        ),
    ]
