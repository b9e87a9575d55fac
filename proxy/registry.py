"""The snapshot compiled for use: where each deployment is called and with which credential. No I/O.

A registry is built whole from a good snapshot and swapped by one assignment; a request keeps the one it started with.
"""

from collections.abc import Callable

import structlog

from keys.kills import kill_field
from proxy.providers import openai
from proxy.snapshot import Credential, Deployment, Provider, Snapshot
from proxy.wire.http1 import Origin

log = structlog.get_logger()

# Reveals a sealed credential: (sealed text, credential id) → secret. Raises ValueError when no key of the vault opens it.
OpenSealed = Callable[[str, str], str]


class Upstream:
    """One deployment, ready to be called. Credentials are used in turn."""

    __slots__ = ("_headers", "_turn", "deployment", "deployment_header", "kill_fields", "origin", "provider")

    def __init__(self, deployment: Deployment, provider: Provider, headers: list[tuple[bytes, bytes]]) -> None:
        self.deployment = deployment
        self.provider = provider
        self.origin = Origin.parse(provider.base_url)
        self.kill_fields = (kill_field("model", deployment.model), kill_field("provider", provider.slug))
        self.deployment_header = (b"x-tollgate-deployment", deployment.name.encode())
        self._headers = headers
        self._turn = 0

    @property
    def can_be_called(self) -> bool:
        """Not when it has credentials and the vault opens none of them. One that has none needs none: a model of one's own."""
        return bool(self._headers) or not self.deployment.credentials

    def authorization(self) -> list[tuple[bytes, bytes]]:
        """The header of the credential whose turn it is; none where none is needed."""
        if not self._headers:
            return []
        self._turn = (self._turn + 1) % len(self._headers)
        return [self._headers[self._turn]]


class Registry:
    """`snapshot` as it came, `upstreams` by deployment id."""

    def __init__(self, snapshot: Snapshot, open_sealed: OpenSealed) -> None:
        self.snapshot = snapshot
        self.upstreams = {
            deployment_id: Upstream(
                deployment,
                snapshot.providers[deployment.provider],
                [header for c in deployment.credentials if (header := _authorization(c, open_sealed)) is not None],
            )
            for deployment_id, deployment in snapshot.deployments.items()
        }

    @property
    def version(self) -> int:
        return self.snapshot.version


def _authorization(credential: Credential, open_sealed: OpenSealed) -> tuple[bytes, bytes] | None:
    try:
        return openai.authorization(open_sealed(credential.sealed, credential.credential_id))
    except ValueError:
        # The rest of the snapshot is good: one credential that the vault cannot open must not stop all traffic.
        log.error("credential cannot be opened", credential_id=credential.credential_id)
        return None
