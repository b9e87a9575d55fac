"""Alerts, their channels, and the outbox of their notices. New tables only."""

import audit.ids
import django.contrib.postgres.fields
import django.core.validators
import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('budgets', '0005_rolls_over_since'),
        ('teams', '0001_initial'),
    ]

    operations = [
        migrations.CreateModel(
            name='Mute',
            fields=[
                ('id', models.UUIDField(default=audit.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ('about_id', models.UUIDField(unique=True)),
                ('team_id', models.UUIDField(null=True)),
                ('until', models.DateTimeField()),
            ],
            options={
                'default_permissions': (),
            },
        ),
        migrations.CreateModel(
            name='Alert',
            fields=[
                ('id', models.UUIDField(default=audit.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ('kind', models.CharField(choices=[('threshold', 'budget threshold'), ('forecast', 'budget runs out'), ('suspense', 'old suspense'), ('drift', 'drift'), ('kill_switch', 'kill switch'), ('credential', 'credential refused')], max_length=16)),
                ('team_id', models.UUIDField(blank=True, null=True)),
                ('about_id', models.UUIDField()),
                ('counter', django.contrib.postgres.fields.ArrayField(base_field=models.CharField(), blank=True, default=list, size=None)),
                ('percent', models.PositiveIntegerField(default=0)),
                ('window_start', models.DateTimeField(blank=True, null=True)),
                ('window_end', models.DateTimeField(blank=True, null=True)),
                ('severity', models.CharField(choices=[('info', 'info'), ('warning', 'warning'), ('critical', 'critical')], max_length=16)),
                ('title', models.CharField()),
                ('text', models.TextField()),
                ('occurrence', models.PositiveIntegerField(default=1)),
                ('opened_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('recovered_at', models.DateTimeField(blank=True, null=True)),
                ('recovery', models.CharField(blank=True)),
                ('acknowledged_at', models.DateTimeField(blank=True, null=True)),
                ('acknowledged_by', models.CharField(blank=True, max_length=200)),
                ('note', models.TextField(blank=True)),
            ],
            options={
                'ordering': ['-opened_at'],
                'default_permissions': ('view', 'change'),
                'indexes': [models.Index(condition=models.Q(('recovered_at__isnull', True)), fields=['kind'], name='budgets_alert_open'), models.Index(fields=['team_id', '-opened_at'], name='budgets_alert_team'), models.Index(fields=['-opened_at'], name='budgets_alert_opened')],
                'constraints': [models.UniqueConstraint(condition=models.Q(('window_start__isnull', False)), fields=('kind', 'about_id', 'counter', 'percent', 'window_start'), name='budgets_alert_once_a_window'), models.UniqueConstraint(condition=models.Q(('recovered_at__isnull', True), ('window_start__isnull', True)), fields=('kind', 'about_id'), name='budgets_alert_one_open')],
            },
        ),
        migrations.CreateModel(
            name='Channel',
            fields=[
                ('id', models.UUIDField(default=audit.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ('name', models.CharField(max_length=100, validators=[django.core.validators.RegexValidator('\\A[^\\x00-\\x1f\\x7f]+\\Z', 'No control characters.')])),
                ('kind', models.CharField(choices=[('slack', 'Slack'), ('teams', 'Microsoft Teams'), ('discord', 'Discord'), ('pagerduty', 'PagerDuty'), ('mail', 'mail'), ('webhook', 'signed webhook')], max_length=16)),
                ('sealed', models.TextField(editable=False)),
                ('least_severity', models.CharField(choices=[('info', 'info'), ('warning', 'warning'), ('critical', 'critical')], default='info', help_text='Less is not sent here.', max_length=16)),
                ('may_be_private', models.BooleanField(default=False, help_text='Lets it connect to private and loopback addresses, such as a mail relay. For administrators.', verbose_name='may be on a private network')),
                ('is_active', models.BooleanField(default=True)),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ('team', models.ForeignKey(blank=True, help_text='Its alerts come here. Empty: what concerns no team, and the alerts of teams that have no channel.', null=True, on_delete=django.db.models.deletion.PROTECT, related_name='channels', to='teams.team')),
            ],
            options={
                'ordering': ['name'],
            },
        ),
        migrations.CreateModel(
            name='Delivery',
            fields=[
                ('id', models.UUIDField(default=audit.ids.uuid7, editable=False, primary_key=True, serialize=False)),
                ('channel_name', models.CharField(max_length=100)),
                ('occurrence', models.PositiveIntegerField(default=1)),
                ('event', models.CharField(choices=[('opened', 'opened'), ('recovered', 'recovered'), ('test', 'test')], max_length=16)),
                ('state', models.CharField(choices=[('waiting', 'waiting'), ('sent', 'sent'), ('dead', 'given up')], default='waiting', max_length=16)),
                ('tries', models.PositiveSmallIntegerField(default=0)),
                ('due_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('last_error', models.CharField(blank=True, max_length=300)),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('ended_at', models.DateTimeField(blank=True, null=True)),
                ('alert', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.CASCADE, related_name='deliveries', to='budgets.alert')),
                ('channel', models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='deliveries', to='budgets.channel')),
            ],
            options={
                'ordering': ['-id'],
                'default_permissions': ('view',),
            },
        ),
        migrations.AddConstraint(
            model_name='channel',
            constraint=models.UniqueConstraint(fields=('team', 'name'), name='budgets_channel_name', nulls_distinct=False, violation_error_message='There is a channel of this name already.'),
        ),
        migrations.AddIndex(
            model_name='delivery',
            index=models.Index(condition=models.Q(('state', 'waiting')), fields=['due_at'], name='budgets_delivery_due'),
        ),
        migrations.AddIndex(
            model_name='delivery',
            index=models.Index(condition=models.Q(('state', 'dead')), fields=['state'], name='budgets_delivery_dead'),
        ),
        migrations.AddConstraint(
            model_name='delivery',
            constraint=models.UniqueConstraint(condition=models.Q(('alert__isnull', False)), fields=('channel', 'alert', 'event', 'occurrence'), name='budgets_delivery_once'),
        ),
    ]
