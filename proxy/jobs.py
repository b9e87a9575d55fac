"""What outlives its request: what providers keep, and jobs, which they go on with after they have answered. Types and rules; no I/O.

A job (a batch, a response in the background) is an attempt in suspense at its held amount. What is needed to ask for its end, and to price it then, is kept with
its hold, so that any worker can do both; what the ledger says of it is enough to make it anew.
"""

from collections.abc import Mapping

import msgspec

from audit.records import Usage
from budgets.pricing import Price, Rates, batch_price, cost_nanos
from proxy.dialects.dialect import BATCH, FILE, MESSAGE_BATCH, RESPONSE, Call
from proxy.dialects.stored import Bounds

DAY_S = 24 * 3600
# As long as OpenAI keeps a response; files and batches for as long as anybody should want them.
EXPIRES_S: Mapping[str, int] = {RESPONSE: 30 * DAY_S}
EXPIRES_OTHERWISE_S = 90 * DAY_S


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`kind` as `Call.kept_kind`; `price` is what one request of it costs. `seq` is the number of the settle of `worker` that
    put it into suspense, 0 where the ledger had it before."""

    kind: str
    deployment_id: str
    price: Price
    credential_id: str = ""
    worker: str = ""
    seq: int = 0


class StoredObject(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Where something is that a provider keeps, and whose it is: as a list, for there are as many as stored responses.
    `bounds` are of a file that holds a batch; `attempt_id` is that which made it."""

    deployment_id: str
    project_id: str
    attempt_id: str
    alias: str = ""
    credential_id: str = ""
    bounds: Bounds | None = None


decode_job = msgspec.json.Decoder(Job).decode
decode_stored = msgspec.json.Decoder(StoredObject).decode
encode_stored = msgspec.json.Encoder().encode


def stored_key(kind: str, upstream_id: str) -> str:
    return f"tg:stored:{kind}:{upstream_id}"


def expires_s(kind: str) -> int:
    return EXPIRES_S.get(kind, EXPIRES_OTHERWISE_S)


def kind_of(operation: str, provider_api: str) -> str:
    """What is kept of an attempt, by what the ledger knows of it."""
    if operation == "batch":
        return MESSAGE_BATCH if provider_api == "anthropic" else BATCH
    return FILE if operation == "files" else RESPONSE


def price_of(call: Call, price: Price) -> Price:
    """What a request of the call costs."""
    return batch_price(price) if call.batch_requests else price


def rates_of_all(rates: Rates, requests: int) -> Rates:
    """What so many requests cost together at most: what is paid for each one, so many times."""
    return msgspec.structs.replace(rates, request_nanos=rates.request_nanos * requests)


def cost_of(usage: Usage, price: Price, requests: int) -> int:
    """Of `requests` that were answered, with this usage together, in nano-USD. A batch of which none was costs nothing."""
    return cost_nanos(usage, price) if requests else 0
