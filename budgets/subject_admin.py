"""What admin pages of rules have in common: how people choose the subject of one, and the way back from a change."""

from decimal import Decimal
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse
from unfold.contrib.filters.admin import AutocompleteSelectFilter
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget

from audit.actors import Actor
from audit.admin_base import ReasonForm, TollgateAdmin, button
from audit.filters import TagFilter
from budgets import services
from budgets.models import DIMENSION_LABELS, OWNERS, SUBJECT_FIELDS, SUBJECT_RELATED, TAG, Budget, Limit
from teams import tags

# What a rule is about, and the fields of its subject that say so. “Whatever fits” offers all of them.
ANYTHING = "anything"
ABOUT: dict[str, tuple[str, tuple[str, ...]]] = {
    "team": ("A team", ("team",)),
    "project": ("A project", ("project",)),
    "virtual_key": ("A virtual key", ("virtual_key",)),
    "end_user": ("Each end user of a project", ("project",)),
    "tag": ("A tag, such as customer=acme", ("team", "project", "tags")),
    "model": ("A model in a project", ("project", "model")),
    "provider": ("A provider", ("team", "provider")),
    "everybody": ("Everybody together", ()),
    ANYTHING: ("Whatever fits: choose any of it", (*SUBJECT_FIELDS.values(), "tags", "each_of", "each_tags")),
}
NARROWING = (
    "environment",
    "end_user",
    "tags",
    "alias",
    "model",
    "provider",
    "deployment",
    "pool",
    "each_of",
    "each_tags",
)
NOT_NAMED: dict[str, Any] = {"environment": "", "end_user": "", "tags": {}, "each_of": [], "each_tags": ""}
PRESET_EACH = {"end_user": ["end_user"]}


class TagsField(forms.CharField):
    """`customer=acme, feature=search`."""

    def __init__(self) -> None:
        super().__init__(
            required=False,
            widget=UnfoldAdminTextInputWidget,
            help_text="Requests that carry all of these, such as customer=acme, feature=search.",
        )

    def clean(self, value: Any) -> dict[str, str]:
        try:
            return dict(tags.parse_header(super().clean(value)))
        except tags.InvalidTags as error:
            raise ValidationError(str(error).removeprefix("x-tollgate-tags: ")) from error


class SubjectForm(ReasonForm):
    """Its subject as people choose it: first what it is about, then that, and no more. On a rule that is there, it is fixed."""

    about = forms.ChoiceField(
        label="For",
        choices=[(name, label) for name, (label, _) in ABOUT.items()],
        initial="team",
        widget=UnfoldAdminSelectWidget,
        required=False,
        help_text="It stays: a rule for somebody else is another rule.",
    )
    tags = TagsField()
    each_of = forms.MultipleChoiceField(
        label="the whole amount for each",
        choices=[(name, f"each {label}") for name, label in DIMENSION_LABELS.items()],
        required=False,
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
        help_text="None: all of them share one amount.",
    )
    each_tags = forms.CharField(
        label="… and for each value of the tags",
        required=False,
        widget=UnfoldAdminTextInputWidget,
        help_text="Names of tags, separated by commas, such as customer.",
    )
    viewer: Any  # Set by the page.

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        for name in ("amount", "rollover", "burst"):
            if self.initial.get(name) is not None:
                self.initial[name] = f"{Decimal(self.initial[name]).normalize():f}"

    def clean(self) -> Any:
        cleaned = super().clean() or {}
        if not self.instance._state.adding:
            return cleaned
        about = cleaned.get("about") or ANYTHING
        for field in {*SUBJECT_FIELDS.values(), "tags", "each_of", "each_tags"}.difference(ABOUT[about][1]):
            cleaned[field] = NOT_NAMED.get(field)
        self._check_about(about, cleaned)
        each_tags = [name.strip() for name in (cleaned.get("each_tags") or "").split(",") if name.strip()]
        self.instance.tags = cleaned.get("tags") or {}
        self.instance.each = PRESET_EACH.get(about, [*cleaned["each_of"], *(f"{TAG}{name}" for name in each_tags)])
        for field in OWNERS.values():
            setattr(self.instance, field, cleaned.get(field))
        self.instance.scope = self.instance.own_scope()
        return cleaned

    def _check_about(self, about: str, cleaned: dict[str, Any]) -> None:
        needed = {"tag": ("tags",), "provider": ("provider",)}.get(about, ABOUT[about][1])
        for field in needed if about != ANYTHING else ():
            if not cleaned.get(field) and field not in self.errors:
                self.add_error(field, "Choose one.")
        if not any(cleaned.get(field) for field in OWNERS.values()) and not self.viewer.sees_all_teams:
            raise ValidationError(
                "Name a team, a project or a virtual key: only who sees every team sets what is for all."
            )

    def _get_validation_exclusions(self) -> set[str]:
        # They are no fields here, or others, but are set by now: the constraints that name them can be checked.
        excluded: set[str] = super()._get_validation_exclusions()  # type: ignore[misc]
        return excluded - {"scope", "each", "tags", "window"} if self.instance.scope else excluded


class SubjectRuleAdmin(TollgateAdmin):
    form: Any = SubjectForm
    list_select_related = SUBJECT_RELATED
    list_filter_submit = True
    subject_filters: Any = (
        ("team", AutocompleteSelectFilter),
        ("project", AutocompleteSelectFilter),
        ("virtual_key", AutocompleteSelectFilter),
        ("model", AutocompleteSelectFilter),
        TagFilter,
    )
    search_fields = ("name",)
    ordering = ("-id",)
    autocomplete_fields = ("team", "project", "virtual_key", "alias", "model", "provider", "deployment", "pool")
    subject_fieldsets: Any = (
        (
            "For whom",
            {"fields": ("about", "team", "project", "virtual_key", *NARROWING)},
        ),
    )
    # Shown only where the subject that is chosen has them.
    conditional_fields: Any = {
        field: " || ".join(f"about == '{name}'" for name, (_, fields) in ABOUT.items() if field in fields)
        for field in (*SUBJECT_FIELDS.values(), "tags", "each_of", "each_tags")
    }

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        if obj is None:
            return fieldsets
        return [("For whom", {"fields": ("subject",)}), *fieldsets[len(self.subject_fieldsets) :]]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return () if obj is None else ("subject",)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change, **kwargs)
        form.viewer = request.user
        return form

    @admin.display(description="for")
    def subject(self, rule: Budget | Limit) -> str:
        return rule.subject

    def perform_create(self, obj: Any, form: Any, actor: Actor, reason: str) -> None:
        services.create_rule(obj, actor=actor, reason=reason)

    def perform_change(self, obj: Any, values: dict[str, Any], form: Any, actor: Actor, reason: str) -> None:
        services.change_rule(obj, actor=actor, reason=reason, values=values)

    def perform_remove(self, obj: Any, actor: Actor, reason: str) -> None:
        services.remove_rule(obj, actor=actor, reason=reason)

    @button("Undo the last change", icon="undo")
    def undo(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self.confirm_one(
            request,
            object_id,
            verb="Undo the last change of",
            warning="What the last change set gets the values of before; see the history for which.",
            perform=services.undo_change,
        )

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> list[Any]:
        """Only what would change something."""
        actions: list[Any] = super().get_actions_detail(request, object_id)
        rule = self.get_object(request, str(object_id))
        can_undo = rule is not None and services.last_change(rule) is not None
        return [action for action in actions if can_undo or not action.action_name.endswith("_undo")]
