"""Jobs: what a provider goes on with after it has answered, a batch or a response in the background. Types and rules; no I/O.

A job is an attempt in suspense at its held amount. What is needed to ask for its end, and to price it then, is kept with
its hold, so that any worker can do both; what the ledger says of it is enough to make it anew.
"""

import msgspec

from audit.records import Usage
from budgets.pricing import Price, batch_price, cost_nanos
from proxy.dialects.dialect import Call


class Job(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`kind` as `Call.kept_kind`; `price` is what one request of it costs. `seq` is the number of the settle of `worker` that
    put it into suspense, 0 where the ledger had it before."""

    kind: str
    deployment_id: str
    price: Price
    credential_id: str = ""
    worker: str = ""
    seq: int = 0


decode_job = msgspec.json.Decoder(Job).decode


def price_of(call: Call, price: Price) -> Price:
    """What a request of the call costs."""
    return batch_price(price) if call.batch_requests else price


def price_of_all(price: Price, requests: int) -> Price:
    """What so many requests cost together: what is paid for each one, so many times."""
    return msgspec.structs.replace(price, request_nanos=price.request_nanos * requests)


def cost_of(usage: Usage, price: Price, requests: int) -> int:
    """Of `requests` that were answered, with this usage together, in nano-USD. A batch of which none was costs nothing."""
    return cost_nanos(usage, price_of_all(price, requests)) if requests else 0
