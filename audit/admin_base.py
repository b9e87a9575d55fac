"""What every admin page here has in common: writes through the audited services, rows bounded by what the viewer may see, a
reason for what hurts, counts that do not count, and a history per object.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.utils import display_for_field, label_for_field, lookup_field, unquote
from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.paginator import Paginator
from django.db import models, transaction
from django.db.models.deletion import ProtectedError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.text import capfirst
from unfold.admin import ModelAdmin, StackedInline, TabularInline
from unfold.decorators import action, display
from unfold.enums import ActionVariant
from unfold.views import ChangeList
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminTextareaWidget

from audit import services
from audit.actors import Actor
from audit.csv_export import csv_response
from audit.models import AuditEntry
from audit.querysets import READERS, WRITERS

EXACT_COUNT_MAX = 10_000
EXPORT_CHUNK_ROWS = 2_000
HISTORY_ENTRIES_MAX = 200
REASON_LENGTH_MAX = 2_000

# Called as `perform(row, actor=…, reason=…)`, as the services are.
Perform = Callable[..., object]
Method = TypeVar("Method", bound=Callable[..., Any])


class ReasonField(forms.CharField):
    def __init__(self, *, required: bool = False) -> None:
        super().__init__(
            required=required,
            max_length=REASON_LENGTH_MAX,
            widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}),
            help_text="Goes on record with the change." if required else "Optional; goes on record with the change.",
        )


class SecretWidget(UnfoldAdminTextareaWidget):  # type: ignore[misc]
    """Several lines, dotted out, and never filled in again."""

    def __init__(self) -> None:
        super().__init__(
            attrs={"rows": 3, "autocomplete": "off", "spellcheck": "false", "style": "-webkit-text-security: disc"}
        )

    def format_value(self, value: Any) -> None:
        return None


class ReasonForm(forms.ModelForm):  # type: ignore[type-arg]
    """The form of an ordinary change: its fields, and why."""

    reason = ReasonField()


class ConfirmForm(forms.Form):
    """The form of a change that hurts: only why."""

    reason = ReasonField(required=True)


def button(
    description: str, *, icon: str, permissions: Sequence[str] = ("change",), hurts: bool = False
) -> Callable[[Method], Method]:
    """A button of one object's page, for the names in `actions_detail`: a method `(self, request, object_id)`."""
    variant = ActionVariant.DANGER if hurts else ActionVariant.DEFAULT
    decorator: Callable[[Method], Method] = action(
        description=description, icon=icon, permissions=permissions, variant=variant
    )
    return decorator


def coloured(description: str, colours: Mapping[str, str]) -> Callable[[Method], Method]:
    """A column of words, each in the colour (success, info, warning, danger) that `colours` gives it."""
    decorator: Callable[[Method], Method] = display(description=description, label=dict(colours))
    return decorator


def choices_field(choices: Sequence[str], *, required: bool = False) -> forms.MultipleChoiceField:
    """Several of a closed list of words, for an array column."""
    return forms.MultipleChoiceField(
        choices=[(choice, choice) for choice in choices],
        required=required,
        widget=UnfoldAdminCheckboxSelectMultipleWidget,
    )


class EstimatingPaginator(Paginator):  # type: ignore[type-arg]
    """Takes the planner's estimate for the number of rows where it is large: `count(*)` would read every one of them."""

    @cached_property
    def count(self) -> int:
        if not isinstance(self.object_list, models.QuerySet):
            return len(self.object_list)
        estimate = estimated_count(self.object_list)
        return estimate if estimate > EXACT_COUNT_MAX else self.object_list.count()


def estimated_count(queryset: models.QuerySet[Any]) -> int:
    """How many rows PostgreSQL expects, from its statistics; no row is read."""
    plan = queryset.order_by().explain(format="json")
    return int(json.loads(plan)[0]["Plan"]["Plan Rows"]) if plan else 0  # No plan: Django knows that nothing can match.


class TollgateChangeList(ChangeList):  # type: ignore[misc]
    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        if not self.query and not self.has_active_filters:
            self.full_result_count = self.result_count  # Else the page offers to "show all" of what is all shown.


class ScopedFields:
    """Form fields that offer, and take, only what the user may write to."""

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        _bound(db_field, request, kwargs)
        return super().formfield_for_foreignkey(db_field, request, **kwargs)  # type: ignore[misc]

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        field = super().formfield_for_dbfield(db_field, request, **kwargs)  # type: ignore[misc]
        if isinstance(db_field, ArrayField | models.JSONField):
            field.widget.attrs["rows"] = 2
        return field


class TollgateInline(ScopedFields, TabularInline):  # type: ignore[misc]
    """Rows of a whole, edited with it; written by the whole's `TollgateAdmin`."""

    extra = 0
    tab = True


class TollgateStackedInline(ScopedFields, StackedInline):  # type: ignore[misc]
    """The same, one below the other: for rows with more fields than fit beside each other."""

    extra = 0
    tab = True


class TollgateAdmin(ScopedFields, ModelAdmin):  # type: ignore[misc]
    """Base of every page. Subclasses declare, and override `perform_*` where the model has services of its own."""

    form: type[forms.ModelForm] = ReasonForm  # type: ignore[type-arg]
    paginator = EstimatingPaginator
    show_full_result_count = False
    list_per_page = 50
    list_max_show_all = 0
    compressed_fields = True
    warn_unsaved_form = True
    object_history_template = "admin/tollgate/history.html"
    actions: Sequence[Any] = ("export_csv", "delete_selected")

    export_columns: Sequence[str] = ()  # None named: those of the list.
    # What an empty list says: what its rows are for, and how the first comes to be.
    empty_text = ""

    # What is seen, and what may be done

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return TollgateChangeList

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Any]:
        return self.scoped(request, READERS)

    def scoped(self, request: HttpRequest, roles: Collection[str]) -> models.QuerySet[Any]:
        """Rows that the user sees (`READERS`) or may change (`WRITERS`)."""
        queryset: models.QuerySet[Any] = self.model._default_manager.all()
        return queryset.for_user(request.user, roles).order_by(*self.get_ordering(request))  # type: ignore[attr-defined,no-any-return]

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_change_permission(request) and self._may_write(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_delete_permission(request) and self._may_write(request, obj)

    def _may_write(self, request: HttpRequest, obj: Any) -> bool:
        """`obj` is a row, the id of one, or None for "any at all"."""
        if obj is None:
            return True
        return self.scoped(request, WRITERS).filter(pk=getattr(obj, "pk", obj)).exists()

    # Writing

    def perform_create(self, obj: Any, form: Any, actor: Actor, reason: str) -> None:
        services.create(obj, actor=actor, reason=reason)

    def perform_change(self, obj: Any, values: dict[str, Any], form: Any, actor: Actor, reason: str) -> None:
        services.change(obj, actor=actor, reason=reason, values=values)

    def perform_remove(self, obj: Any, actor: Actor, reason: str) -> None:
        services.remove(obj, actor=actor, reason=reason)

    def perform_row_create(self, row: Any, actor: Actor, reason: str) -> None:
        """Of an inline; so the next two."""
        services.create(row, actor=actor, reason=reason)

    def perform_row_change(self, row: Any, values: dict[str, Any], actor: Actor, reason: str) -> None:
        services.change(row, actor=actor, reason=reason, values=values)

    def perform_row_remove(self, row: Any, actor: Actor, reason: str) -> None:
        services.remove(row, actor=actor, reason=reason)

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """What only the writing itself could find, such as somebody else's row in between, is said and nothing written."""
        try:
            response: HttpResponse = super().changeform_view(request, object_id, form_url, extra_context)
        except ValidationError as error:
            self.message_user(request, " ".join(error.messages), messages.ERROR)
        except ProtectedError as error:
            self.message_user(request, _in_use(error), messages.ERROR)
        else:
            return response
        return HttpResponseRedirect(request.get_full_path())

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        actor, reason = Actor.from_request(request), form.cleaned_data.get("reason", "")
        if not change:
            self.perform_create(obj, form, actor, reason)
            return
        columns = {field.name for field in self.model._meta.concrete_fields}
        values = {name: getattr(obj, name) for name in form.changed_data if name in columns}
        self.perform_change(obj, values, form, actor, reason)

    def save_related(self, request: HttpRequest, form: Any, formsets: Iterable[Any], change: bool) -> None:
        actor, reason = Actor.from_request(request), form.cleaned_data.get("reason", "")
        for field in self.model._meta.many_to_many:
            if field.name in form.cleaned_data:
                chosen = form.cleaned_data[field.name]
                services.change_related(form.instance, field.name, chosen, actor=actor, reason=reason)
        for formset in formsets:
            self._save_rows(formset, actor, reason)

    def _save_rows(self, formset: Any, actor: Actor, reason: str) -> None:
        formset.save(commit=False)
        for row in formset.deleted_objects:
            self.perform_row_remove(row, actor, reason)
        for row, changed in formset.changed_objects:
            self.perform_row_change(row, {name: getattr(row, name) for name in changed}, actor, reason)
        for row in formset.new_objects:
            self.perform_row_create(row, actor, reason)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        fieldsets = super().get_fieldsets(request, obj)
        if "reason" not in self.form.declared_fields or not self._may_save(request, obj):
            return fieldsets
        named = [name for _, options in fieldsets for name in options["fields"]]
        return fieldsets if "reason" in named else [*fieldsets, ("Why", {"fields": ["reason"]})]

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        fields = super().get_fields(request, obj)
        if self._may_save(request, obj):
            return fields
        return [name for name in fields if name not in self.form.declared_fields]

    def _may_save(self, request: HttpRequest, obj: Any) -> bool:
        return self.has_add_permission(request) if obj is None else self.has_change_permission(request, obj)

    # The audit entries are the log.

    def log_addition(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_change(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_deletions(self, *args: Any, **kwargs: Any) -> None:
        pass

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        obj = self.get_object(request, unquote(object_id))
        if obj is None or not self.has_view_permission(request, obj):
            raise PermissionDenied
        entries = list(AuditEntry.objects.about(obj)[:HISTORY_ENTRIES_MAX])
        context = self._page_context(request, f"History of {obj}") | {
            "object": obj,
            "entries": [(entry, differences(entry)) for entry in entries],
            "entries_max": HISTORY_ENTRIES_MAX,
        }
        return TemplateResponse(request, self.object_history_template, context | (extra_context or {}))

    # Deeds that ask why

    def confirm(
        self,
        request: HttpRequest,
        objects: models.QuerySet[Any],
        *,
        verb: str,
        warning: str,
        perform: Perform,
        action_name: str = "",
    ) -> HttpResponse | None:
        """Ask for a reason on a page of its own, then `perform(row, actor=actor, reason=reason)` on all of `objects` or on none.

        None once that is done. `action_name` is that of the list action, empty for a button of one object's page.
        """
        rows = list(objects.filter(pk__in=self.scoped(request, WRITERS).order_by().values("pk")))
        if len(rows) != objects.count():
            raise PermissionDenied
        if not rows:
            self.message_user(request, "There is nothing to do.", messages.WARNING)
            return None
        form = ConfirmForm(request.POST if "confirmed" in request.POST else None)
        if form.is_valid():
            try:
                with transaction.atomic():
                    for row in rows:
                        perform(row, actor=Actor.from_request(request), reason=form.cleaned_data["reason"])
            except ValidationError as error:
                form.add_error(None, error.messages)
            except ProtectedError as error:
                form.add_error(None, _in_use(error))
            else:
                self.message_user(request, f"{verb}: {_named(rows)}.", messages.SUCCESS)
                return None
        context = self._page_context(request, f"{verb}: {_named(rows)}") | {
            "form": form,
            "rows": rows,
            "verb": verb,
            "warning": warning,
            "action_name": action_name,
            "select_across": request.POST.get("select_across", "0"),
            "checkbox_name": ACTION_CHECKBOX_NAME,
            "cancel_url": reverse(self._url_name("changelist")),
        }
        return TemplateResponse(request, "admin/tollgate/confirm.html", context)

    def confirm_one(
        self, request: HttpRequest, object_id: str, *, verb: str, warning: str, perform: Perform
    ) -> HttpResponse:
        """`confirm` for a button of one object's page; comes back to that page."""
        one = self.get_queryset(request).filter(pk=object_id)
        if not one.exists():
            raise PermissionDenied
        answer = self.confirm(request, one, verb=verb, warning=warning, perform=perform)
        return answer or HttpResponseRedirect(reverse(self._url_name("change"), args=[object_id]))

    @admin.action(description="Delete selected…", permissions=["delete"])
    def delete_selected(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> HttpResponse | None:
        return self.confirm(
            request,
            queryset,
            verb="Delete",
            warning="They are gone for good; what they were stays in the audit.",
            perform=self.perform_remove,
            action_name="delete_selected",
        )

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        one = self.get_queryset(request).filter(pk=unquote(object_id))
        obj = one.first()
        if obj is None or not self.has_delete_permission(request, obj):
            raise PermissionDenied
        answer = self.confirm(
            request,
            one,
            verb="Delete",
            warning="It is gone for good; what it was stays in the audit.",
            perform=self.perform_remove,
        )
        return answer or HttpResponseRedirect(reverse(self._url_name("changelist")))

    # Taking it away

    @admin.action(description="Export as CSV", permissions=["view"])
    def export_csv(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> StreamingHttpResponse:
        columns = self.export_columns or self.get_list_display(request)
        with transaction.atomic():
            services.record(
                Actor.from_request(request),
                "export",
                object_type=self.model._meta.label_lower,
                object_name=f"{self.opts.verbose_name_plural}: {request.META.get('QUERY_STRING', '') or 'all'}",
            )
        rows = queryset.iterator(chunk_size=EXPORT_CHUNK_ROWS)
        header = [str(label_for_field(name, self.model, model_admin=self)) for name in columns]
        return csv_response(
            str(self.opts.model_name), header, ([self._cell(row, name) for name in columns] for row in rows)
        )

    def _cell(self, row: Any, name: str) -> str:
        field, _, value = lookup_field(name, row, self)
        if isinstance(value, datetime):
            return value.isoformat()
        if field is None or isinstance(field, models.ForeignKey) or isinstance(value, list | dict):
            return "" if value is None else str(value)
        return str(display_for_field(value, field, "")) if field.choices else "" if value is None else str(value)

    # Parts

    def _page_context(self, request: HttpRequest, title: str) -> dict[str, Any]:
        return {**self.admin_site.each_context(request), "title": title, "opts": self.opts, "model_admin": self}

    def _url_name(self, page: str) -> str:
        return f"admin:{self.opts.app_label}_{self.opts.model_name}_{page}"


class Issued(Protocol):
    """A secret, as `keys.vault.Secret` is one."""

    def reveal(self) -> str: ...


class IssuingAdmin(TollgateAdmin):
    """A page that adds by issuing: the answer to the form is the only page that ever shows the secret.

    `perform_create` leaves it as the row's `issued_secret`, None where there is none.
    """

    issued_name = "Secret"
    issued_kept = "Tollgate keeps its SHA-256 alone"

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: Any = None) -> HttpResponse:
        if obj.issued_secret is None:
            response: HttpResponse = super().response_add(request, obj, post_url_continue)
            return response
        return self.show_once(request, obj, obj.issued_secret)

    def show_once(self, request: HttpRequest, obj: Any, secret: Issued) -> HttpResponse:
        context = self._page_context(request, f"{self.issued_name} of {obj}") | {
            "name": str(obj),
            "secret": secret.reveal(),
            "kept": self.issued_kept,
            "next_url": reverse(self._url_name("change"), args=[obj.pk]),
        }
        response = TemplateResponse(request, "admin/tollgate/issued.html", context)
        response["Cache-Control"] = "no-store"
        return response


class AppendOnlyAdmin(TollgateAdmin):
    """Rows that are added, and never edited or deleted."""

    actions: Sequence[Any] = ("export_csv",)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ReadOnlyAdmin(AppendOnlyAdmin):
    """Rows that nobody writes here."""

    form = forms.ModelForm

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False


def differences(entry: AuditEntry) -> list[tuple[str, str, str]]:
    """Column, before, after; of the columns that differ."""
    before, after = entry.before or {}, entry.after or {}
    names = sorted({*before, *after})
    return [
        (name, _shown(before.get(name)), _shown(after.get(name)))
        for name in names
        if before.get(name) != after.get(name)
    ]


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "(empty)"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _bound(db_field: Any, request: HttpRequest, kwargs: dict[str, Any]) -> None:
    manager = db_field.remote_field.model._default_manager
    if "queryset" not in kwargs and hasattr(manager.all(), "for_user"):
        kwargs["queryset"] = manager.all().for_user(request.user, WRITERS)


def _named(rows: Sequence[Any]) -> str:
    return str(rows[0]) if len(rows) == 1 else f"{len(rows)} {rows[0]._meta.verbose_name_plural}"


def _in_use(error: ProtectedError) -> str:
    users = [f"{capfirst(user._meta.verbose_name)} {user}" for user in list(error.protected_objects)[:10]]
    return f"Still in use by: {', '.join(users)}."
