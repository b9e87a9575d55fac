"""Create, change, remove: one transaction, one audit entry, no secret in it, and nothing of somebody else's undone."""

import pytest
from django.apps import apps
from django.core.exceptions import ValidationError
from django.db.models.deletion import ProtectedError
from django.test import RequestFactory

from audit import services
from audit.actors import Actor, client_ip
from audit.models import AuditEntry
from audit.signals import recorded
from keys.models import VirtualKey
from teams.models import Team
from tests import factories
from tests.factories import ACTOR

pytestmark = pytest.mark.django_db

SECRET_COLUMNS = ("password", "sealed", "secret", "token")


def test_a_creation_is_recorded_with_what_was_created():
    team = Team(name="Research", slug="research")
    entry = services.create(team, actor=ACTOR, reason="a new team")
    assert (entry.action, entry.object_type, entry.object_id) == ("create", "teams.team", str(team.pk))
    assert entry.before is None and entry.after["name"] == "Research" and entry.reason == "a new team"


def test_a_change_is_recorded_with_before_and_after():
    team = factories.TeamFactory(name="Old")
    entry = services.change(team, actor=ACTOR, values={"name": "New"})
    assert (entry.before["name"], entry.after["name"]) == ("Old", "New")
    assert Team.objects.get().name == "New"


def test_a_change_of_nothing_is_no_change():
    team = factories.TeamFactory(name="Same")
    assert services.change(team, actor=ACTOR, values={"name": "Same"}) is None
    assert not AuditEntry.objects.exists()


def test_a_change_writes_nothing_but_its_own_fields():
    key = factories.VirtualKeyFactory()
    stale = VirtualKey.objects.get(pk=key.pk)
    VirtualKey.objects.filter(pk=key.pk).update(revoked_at="2026-01-01T00:00:00Z")
    services.change(stale, actor=ACTOR, values={"name": "renamed"})
    stored = VirtualKey.objects.get(pk=key.pk)
    assert stored.name == "renamed" and stored.revoked_at is not None
    assert stale.revoked_at is not None


def test_every_write_counts_a_version_up():
    key = factories.VirtualKeyFactory()
    stale = VirtualKey.objects.get(pk=key.pk)
    services.change(key, actor=ACTOR, values={"name": "one"})
    services.change(stale, actor=ACTOR, values={"name": "two"})
    assert VirtualKey.objects.get(pk=key.pk).version == 3


def test_a_removal_records_every_row_that_goes():
    target = factories.AliasTargetFactory()
    services.remove(target.alias, actor=ACTOR, reason="retired")
    removed = AuditEntry.objects.filter(action="delete", after__isnull=True, reason="retired")
    assert {entry.object_type for entry in removed} == {"routing.modelalias", "routing.aliastarget"}


def test_what_is_in_use_is_not_removed_and_nothing_is_recorded():
    project = factories.ProjectFactory()
    with pytest.raises(ProtectedError):
        services.remove(project.team, actor=ACTOR)
    assert Team.objects.exists() and not AuditEntry.objects.exists()


def test_what_a_constraint_refuses_is_not_recorded():
    factories.TeamFactory(slug="taken")
    with pytest.raises(ValidationError):
        services.create(Team(name="Other", slug="taken"), actor=ACTOR)
    assert not AuditEntry.objects.exists()


def test_when_the_entry_cannot_be_written_neither_is_the_change():
    nobody = Actor("user", "x" * 65, "too long an id")
    with pytest.raises(Exception, match="too long"):
        services.create(Team(name="Ghost", slug="ghost"), actor=nobody)


def test_a_secret_column_is_shown_as_set_and_as_changed_never_as_itself():
    user = factories.UserFactory(password="hash-one")
    entry = services.change(user, actor=ACTOR, values={"password": "hash-two"})
    assert entry.before["password"] == "[redacted]" and entry.after["password"] == "[redacted, changed]"
    assert "hash" not in str(entry.before) + str(entry.after)


def test_every_model_with_a_secret_column_hides_it():
    for model in apps.get_models():
        if model._meta.app_label not in ("audit", "teams", "keys", "routing", "budgets"):
            continue
        hidden = getattr(model, "audit_hidden", frozenset())
        names = {field.name for field in model._meta.concrete_fields}
        assert {name for name in names if any(part == name for part in SECRET_COLUMNS)} <= hidden, model


def test_related_rows_are_recorded_by_name():
    user, group = factories.UserFactory(), factories.GroupFactory(name="Finance")
    entry = services.change_related(user, "groups", [group.group_ptr], actor=ACTOR)
    assert (entry.before, entry.after) == ({"groups": []}, {"groups": ["Finance"]})
    assert services.change_related(user, "groups", [group.group_ptr], actor=ACTOR) is None


def test_listeners_hear_of_a_change_inside_its_transaction():
    heard = []

    def listen(sender, entry, obj, **kwargs):
        heard.append((entry.action, obj))

    recorded.connect(listen)
    try:
        team = Team(name="Heard", slug="heard")
        services.create(team, actor=ACTOR)
    finally:
        recorded.disconnect(listen)
    assert heard == [("create", team)]


def test_the_actor_is_who_is_signed_in():
    request = RequestFactory().get("/")
    request.user = user = factories.UserFactory()
    assert Actor.from_request(request) == Actor("user", str(user.pk), user.username, "127.0.0.1")
    request.user = account = factories.ServiceAccountFactory()
    assert Actor.from_request(request).kind == "service_account"
    assert Actor.from_request(request).id == str(account.pk)


@pytest.mark.parametrize(
    ("trusted", "forwarded", "address"),
    [
        (0, "6.6.6.6", "127.0.0.1"),  # Nobody is trusted: the header is the client's own tale.
        (1, "6.6.6.6, 9.9.9.9", "9.9.9.9"),
        (2, "6.6.6.6, 8.8.8.8, 9.9.9.9", "8.8.8.8"),
        (2, "9.9.9.9", "127.0.0.1"),
        (1, "", "127.0.0.1"),
    ],
)
def test_the_address_is_the_one_a_trusted_proxy_saw(settings, trusted, forwarded, address):
    settings.TRUSTED_PROXIES = trusted
    assert client_ip(RequestFactory().get("/", headers={"x-forwarded-for": forwarded})) == address
