"""Settings of the data path, read from the environment once, at start. No I/O, no defaults elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

Number = TypeVar("Number", int, float)

ROOT = Path(__file__).resolve().parent.parent
REDIS_SCHEMES = ("redis", "rediss", "unix")
MIB = 1024 * 1024


class ConfigError(ValueError):
    """The environment holds nonsense. The message names the variable, never its value where that may be secret."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """`grace_s`: how long live requests may go on after SIGTERM. `bind`: `host:port` or `unix:path`, for gunicorn."""

    redis_url: str = field(repr=False)
    vault_key: str = field(default="", repr=False)
    data_dir: Path = ROOT / "var"
    bind: str = "127.0.0.1:8080"
    workers: int = 2
    body_bytes_max: int = 32 * MIB
    idempotency_bytes_max: int = MIB
    grace_s: float = 25.0
    lease_s: float = 30.0
    redis_timeout_s: float = 0.15
    # Where the control plane listens; "": receipts are not served.
    control_url: str = ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Config":
        """Raises `ConfigError`, one line for an operator."""
        port = _number(environ, "TOLLGATE_PROXY_PORT", 8080, low=1, high=65535)
        return cls(
            redis_url=_redis_url(environ),
            vault_key=environ.get("TOLLGATE_VAULT_KEY", ""),
            data_dir=Path(environ.get("TOLLGATE_DATA_DIR") or ROOT / "var").resolve(),
            bind=environ.get("TOLLGATE_PROXY_BIND") or f"127.0.0.1:{port}",
            workers=_number(environ, "TOLLGATE_PROXY_WORKERS", cls.workers, low=1, high=256),
            body_bytes_max=_number(environ, "TOLLGATE_BODY_BYTES_MAX", cls.body_bytes_max, low=1024, high=1024 * MIB),
            idempotency_bytes_max=_number(
                environ, "TOLLGATE_IDEMPOTENCY_BYTES_MAX", cls.idempotency_bytes_max, low=0, high=64 * MIB
            ),
            grace_s=_number(environ, "TOLLGATE_GRACE_S", cls.grace_s, low=0, high=3600),
            lease_s=_number(environ, "TOLLGATE_LEASE_S", cls.lease_s, low=1, high=600),
            control_url=_control_url(environ),
            redis_timeout_s=_number(environ, "TOLLGATE_REDIS_TIMEOUT_S", cls.redis_timeout_s, low=0.01, high=60),
        )


def _redis_url(environ: Mapping[str, str]) -> str:
    url = environ.get("REDIS_URL", "")
    if not url:
        raise ConfigError("REDIS_URL is not set: the proxy admits nothing without Redis")
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        scheme = ""
    if scheme not in REDIS_SCHEMES:
        raise ConfigError(f"REDIS_URL is not a URL that starts with {':// or '.join(REDIS_SCHEMES)}://")
    return url


def _control_url(environ: Mapping[str, str]) -> str:
    url = environ.get("TOLLGATE_CONTROL_URL", "")
    try:
        parts = urlsplit(url)
        is_sound = not url or (parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc)
        is_sound = is_sound and parts.port != 0 and parts.path in ("", "/") and not parts.query and not parts.fragment
    except ValueError:
        is_sound = False
    if not is_sound:
        raise ConfigError("TOLLGATE_CONTROL_URL is not http[s]://host[:port]")
    return url


def _number(environ: Mapping[str, str], name: str, default: Number, *, low: float, high: float) -> Number:
    """Of the default's type: a whole number stays whole."""
    text = environ.get(name, "")
    if not text:
        return default
    try:
        value = type(default)(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:
        raise ConfigError(f"{name} is {text!r}: it must be a number from {low} to {high}")
    return value
