"""Kill switches as the data path sees them: scopes, flag fields, what a flag covers. No database, no Django."""

from typing import Literal

import msgspec

Scope = Literal["global", "team", "project", "key", "model", "provider"]
SCOPES: tuple[Scope, ...] = ("global", "team", "project", "key", "model", "provider")


class KillFlag(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The value of one flag in `tg:kills`. `target` is empty for `global`; an id for team, project and key; a name for
    model; a slug for provider."""

    kill_switch_id: str
    scope: Scope
    target: str = ""
    reason: str
    thrown_at_s: float = 0.0

    @property
    def field(self) -> str:
        return kill_field(self.scope, self.target)


def kill_field(scope: str, target: str = "") -> str:
    """The flag's field: `global`, or `team:{id}` and the like. Raises ValueError on an unknown scope or a missing target."""
    if scope not in SCOPES:
        raise ValueError(f"unknown kill switch scope {scope!r}; one of {', '.join(SCOPES)}")
    if scope == "global":
        return "global"
    if not target:
        raise ValueError(f"a kill switch of scope {scope} needs a target")
    return f"{scope}:{target}"


_decoder = msgspec.json.Decoder(KillFlag)


def encode_flag(flag: KillFlag) -> bytes:
    return msgspec.json.encode(flag)


def decode_flag(body: bytes) -> KillFlag:
    """Raises `msgspec.DecodeError` or `msgspec.ValidationError`."""
    return _decoder.decode(body)
