"""The snapshot: everything the data path knows about configuration. Types and decoding only; no I/O.

The control plane compiles it from the models (`controlplane/publish.py`) and swaps it whole; virtual keys travel one by
one as `KeyRecord`s. All money is in integer nano-USD (1e-9 USD), rates per 1,000,000 tokens.
"""

import msgspec

from budgets.pricing import Price
from routing.engine import AliasTarget

SCHEMA_VERSION = 2


class Struct(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=False):
    """Immutable, and a field that an older control plane does not send has a default."""


class Threshold(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What happens from `percent` of the amount on: throttle (to `per_minute` requests), downgrade (to the cheaper `alias`), or
    block. What only tells somebody is the control plane's."""

    percent: int
    action: str
    per_minute: int = 0
    alias: str = ""


class Increase(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Added to a budget's amount from `from_s` until `until_s` (Unix seconds)."""

    amount: int
    from_s: float
    until_s: float


class Budget(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """At most `amount` (nano-USD, tokens or requests, by `unit`: usd, tokens, requests) in each window.

    `subject` says whom it counts: dimension to value, all of them must match; `*` gives each value a counter of its own, and {}
    is everybody. `window` is hour, day, week, month, quarter, year, total or fixed (from `starts_at_s` to `ends_at_s`), on the
    calendar of `time_zone` (IANA name). `mode` is hard, soft, or observe, which only counts what it would have refused.
    """

    budget_id: str
    name: str
    subject: dict[str, str] = {}
    window: str
    amount: int
    unit: str = "usd"
    mode: str = "hard"
    time_zone: str = "UTC"
    # The first month of the fiscal year: quarters and years begin with it.
    fiscal_month: int = 1
    starts_at_s: float | None = None
    ends_at_s: float | None = None
    # At most so much of what the last window left is added to this one.
    rollover: int = 0
    increases: tuple[Increase, ...] = ()
    thresholds: tuple[Threshold, ...] = ()


class Limit(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """At most `amount` of `metric` (requests, tokens, input_tokens, output_tokens, spend in nano-USD) in `window_s` seconds, of
    which `burst` at once (None: all of it); of concurrency, requests running at once. `subject` is as a budget's."""

    limit_id: str
    name: str = ""
    subject: dict[str, str] = {}
    metric: str
    amount: int
    window_s: int = 60
    burst: int | None = None
    is_observed: bool = False


class Credential(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`sealed` is the vault's ciphertext; the clear text exists only in a worker's memory."""

    credential_id: str
    sealed: str


class Provider(Struct, frozen=True, kw_only=True, omit_defaults=True):
    slug: str
    api: str
    base_url: str
    output_cap_field: str = "max_completion_tokens"
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 120.0
    idle_timeout_s: float = 60.0
    is_active: bool = True
    # What only this kind of provider knows: Azure's `api_version`, Vertex's `project` and `location`, Bedrock's `region`, ….
    options: dict[str, str] = {}
    # What is held for a call that is passed through at an unknown price; None refuses it.
    passthrough_hold_nanos: int | None = None
    # It finishes, and bills, an answer that nobody reads any more. So such an answer is read to its end.
    runs_on: bool = False


class Deployment(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model at a provider. `output_is_visible`: every output token shows in the stream, so tranches are safe."""

    deployment_id: str
    name: str
    provider: str
    model: str
    upstream_model: str
    price: Price | None = None
    # The credential pool; "" for none.
    pool: str = ""
    credentials: tuple[Credential, ...] = ()
    max_output_tokens: int = 4096
    context_window: int = 128_000
    output_is_visible: bool = False
    operations: tuple[str, ...] = ("chat",)
    is_active: bool = True
    # What the provider serves a request at that names no service tier; "" is standard.
    auto_tier: str = ""


class Alias(Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    targets: tuple[AliasTarget, ...]
    created_at_s: int = 0
    # What a provider cannot be told is left out, and named in `x-tollgate-dropped`, where it would be refused.
    is_lenient: bool = False


class Team(Struct, frozen=True, kw_only=True, omit_defaults=True):
    team_id: str
    name: str
    time_zone: str = "UTC"


class Project(Struct, frozen=True, kw_only=True, omit_defaults=True):
    project_id: str
    team_id: str
    name: str
    environment: str = ""
    default_tags: dict[str, str] = {}
    required_tags: tuple[str, ...] = ()


class Snapshot(Struct, frozen=True, kw_only=True, omit_defaults=True):
    schema_version: int
    version: int
    published_at_s: float
    teams: dict[str, Team] = {}
    projects: dict[str, Project] = {}
    providers: dict[str, Provider] = {}
    deployments: dict[str, Deployment] = {}
    aliases: dict[str, Alias] = {}
    # All but those that name a virtual key, which travel with it: there may be hundreds of thousands.
    budgets: tuple[Budget, ...] = ()
    limits: tuple[Limit, ...] = ()


class KeyRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One virtual key. `version` only grows; `aliases` names what it may call, `*` means every alias."""

    key_id: str
    version: int
    name: str
    project_id: str
    aliases: tuple[str, ...]
    # Slugs of the providers of which it may call any path, `*` means all.
    passthrough: tuple[str, ...] = ()
    is_paused: bool = False
    is_revoked: bool = False
    expires_at_s: float | None = None
    default_tags: dict[str, str] = {}
    budgets: tuple[Budget, ...] = ()
    limits: tuple[Limit, ...] = ()


class UnknownSchema(ValueError):
    """The snapshot was written for another version of the proxy."""


_snapshot_decoder = msgspec.json.Decoder(Snapshot)
_key_decoder = msgspec.json.Decoder(KeyRecord)
_encoder = msgspec.json.Encoder()


def encode(value: Snapshot | KeyRecord) -> bytes:
    return _encoder.encode(value)


def decode_snapshot(body: bytes) -> Snapshot:
    """Decode and check. Raises `msgspec.DecodeError` on nonsense, `UnknownSchema` on another schema, and
    `ValueError` on a reference that leads nowhere: a snapshot is good as a whole or refused as a whole."""
    snapshot = _snapshot_decoder.decode(body)
    if snapshot.schema_version != SCHEMA_VERSION:
        raise UnknownSchema(f"snapshot schema {snapshot.schema_version}, this proxy reads {SCHEMA_VERSION}")
    for project in snapshot.projects.values():
        if project.team_id not in snapshot.teams:
            raise ValueError(f"project {project.project_id} names an unknown team {project.team_id}")
    for deployment in snapshot.deployments.values():
        if deployment.provider not in snapshot.providers:
            raise ValueError(f"deployment {deployment.name} names an unknown provider {deployment.provider}")
    for alias in snapshot.aliases.values():
        for target in alias.targets:
            if target.deployment_id not in snapshot.deployments:
                raise ValueError(f"alias {alias.name} names an unknown deployment {target.deployment_id}")
    return snapshot


def decode_key(body: bytes) -> KeyRecord:
    return _key_decoder.decode(body)
