"""Writes about people, teams and projects. Each is one transaction with one audit entry.

Raise ValidationError when a field or constraint refuses. Plain edits go through `audit.services.change` and `remove`.
"""

from collections.abc import Iterable, Mapping, Sequence

from django.db import transaction

from audit import services as audit
from audit.actors import Actor
from teams.models import Membership, Project, ServiceAccount, Team, User


def create_team(name: str, slug: str, *, actor: Actor, time_zone: str = "UTC", reason: str = "") -> Team:
    team = Team(name=name, slug=slug, time_zone=time_zone)
    audit.create(team, actor=actor, reason=reason)
    return team


def create_project(
    team: Team,
    name: str,
    slug: str,
    *,
    actor: Actor,
    environment: str = Project.Environment.DEV,
    cost_centre: str = "",
    default_tags: Mapping[str, str] | None = None,
    required_tag_keys: Iterable[str] = (),
    reason: str = "",
) -> Project:
    project = Project(
        team=team,
        name=name,
        slug=slug,
        environment=environment,
        cost_centre=cost_centre,
        default_tags=dict(default_tags or {}),
        required_tag_keys=list(required_tag_keys),
    )
    audit.create(project, actor=actor, reason=reason)
    return project


def create_user(
    username: str,
    email: str,
    password: str,
    *,
    actor: Actor,
    is_staff: bool = True,
    is_superuser: bool = False,
    reason: str = "",
) -> User:
    """`password` is not judged here: the forms do that."""
    user = User(username=username, email=email, is_staff=is_staff, is_superuser=is_superuser)
    user.set_password(password)
    audit.create(user, actor=actor, reason=reason)
    return user


def set_password(user: User, password: str, *, actor: Actor, reason: str = "") -> None:
    hashed = User()
    hashed.set_password(password)
    audit.change(user, actor=actor, reason=reason, action="set password", values={"password": hashed.password})


def set_member(user: User, team: Team, role: str, *, actor: Actor, reason: str = "") -> Membership:
    """Add the user to the team, or change the role there."""
    with transaction.atomic():
        membership = Membership.objects.filter(user=user, team=team).first()
        if membership is None:
            membership = Membership(user=user, team=team, role=role)
            audit.create(membership, actor=actor, reason=reason)
        else:
            audit.change(membership, actor=actor, reason=reason, values={"role": role})
    return membership


def create_service_account(
    name: str, *, actor: Actor, scopes: Sequence[str], team: Team | None = None, reason: str = ""
) -> ServiceAccount:
    """Without `team` the account sees every team."""
    account = ServiceAccount(name=name, team=team, scopes=list(scopes))
    audit.create(account, actor=actor, reason=reason)
    return account


def may_grant(grantor: User | ServiceAccount, account: ServiceAccount) -> bool:
    """Whether what `account` may do is within what `grantor` may: nobody hands out more than they hold.

    What a person may is said by other permissions than scopes, so only a superuser's are known to cover them.
    """
    if account.team_id is None and not grantor.sees_all_teams:
        return False
    if isinstance(grantor, ServiceAccount):
        return all(grantor.may(scope) for scope in account.scopes)
    return grantor.is_superuser or not account.scopes
