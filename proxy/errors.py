"""What can go wrong on the data path, as one tree. No dialect, no I/O.

    GatewayError
    ├── InvalidRequest            400  malformed_request, invalid_tags, missing_tags, …
    │   ├── CannotCarry           400  across dialects
    │   │   └── Unbounded         400  what the price does not bound
    │   └── RequestTooLarge       413
    ├── InvalidKey                401
    ├── AliasNotAllowed           403
    ├── TrafficHalted             403  a kill switch
    ├── AliasUnknown              404
    ├── RouteUnknown              404  (405 for a wrong method)
    │   └── StoredUnknown         404  a file, a batch, a response: not there, or another project's
    ├── IdempotencyConflict       409  the `Idempotency-Key` was used before …
    │   ├── IdempotencyKeyInUse   409  and the answer is still to come
    │   ├── IdempotencyKeyReused  422  for another request
    │   ├── OutcomeUnknown        409  by a worker that died in the middle of the call
    │   └── AnswerNotKept         410  for an answer that is not there any more
    ├── Exceeded                  429  a rule of ours has no room
    │   ├── BudgetExceeded        429
    │   └── LimitExceeded         429
    ├── ProviderLimitReached      429  by the provider's own word, before it is asked
    ├── UnpricedModel             403  no price, so no bound, so no call
    ├── UpstreamRefused           the provider's own 4xx and 5xx, told in its own words
    ├── UpstreamUnreachable       502  transient
    ├── UpstreamBroken            502
    │   └── CredentialRefused     502  the gateway's own, which the ledger tells and the client is not told apart
    ├── UpstreamStreamFailed      502  an error inside a stream of 200
    ├── UpstreamTimedOut          504
    ├── Unavailable               503  a dependency of ours is down
    └── ClientGone                499  nobody is left to tell

Each leaf says `status_code`, `error_type` (OpenTelemetry `error.type`) and whether it is `transient`: whether the next
deployment may do better. Only the message of a GatewayError ever reaches a client.
"""

from collections.abc import Sequence

from audit.records import CREDENTIAL_REFUSED


class GatewayError(Exception):
    status_code = 500
    error_type = "gateway_error"
    transient = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        should_retry: bool | None = None,
        details: dict[str, object] | None = None,
    ) -> None:
        """`code` defaults to `error_type`; `details` are extra fields of the client's error object."""
        super().__init__(message)
        self.message = message
        self.code = code or self.error_type
        self.param = param
        self.retry_after_s = retry_after_s
        self.should_retry = should_retry
        self.details = details or {}


class InvalidRequest(GatewayError):
    status_code = 400
    error_type = "malformed_request"


class RequestTooLarge(InvalidRequest):
    status_code = 413
    error_type = "request_too_large"


class CannotCarry(InvalidRequest):
    """The request says something that the provider's API has no place for, and the alias does not allow to drop it."""

    error_type = "unsupported_parameter"

    def __init__(self, lost: Sequence[str], provider: str) -> None:
        super().__init__(
            f"{', '.join(f'`{name}`' for name in lost)} cannot be carried to {provider}: leave it out, ask for a model at a "
            "provider that has it, or let an administrator mark the alias as lenient",
            param=lost[0],
            details={"unsupported": list(lost)},
        )
        self.lost = tuple(lost)


class Unbounded(CannotCarry):
    """The request asks the provider for what its price does not bound, another model for example: no bound, so no call."""

    def __init__(self, fields: Sequence[str], provider: str) -> None:
        super().__init__(fields, provider)
        self.message = (
            f"{', '.join(f'`{name}`' for name in fields)} would have the call at {provider} cost what its price does not say: "
            "leave it out, or let an administrator mark the alias as lenient"
        )


class MissingTags(InvalidRequest):
    error_type = "missing_tags"

    def __init__(self, missing: Sequence[str]) -> None:
        super().__init__(
            f"this project requires the tags {', '.join(missing)}: "
            "send them as `x-tollgate-tags: key=value,…` or in the body's `metadata`",
            details={"missing": list(missing)},
        )


class InvalidKey(GatewayError):
    status_code = 401
    error_type = "invalid_api_key"


class AliasNotAllowed(GatewayError):
    status_code = 403
    error_type = "alias_not_allowed"


class TrafficHalted(GatewayError):
    """Stopped by a kill switch, before the call or in the middle of its stream."""

    status_code = 403
    error_type = "traffic_halted"

    def __init__(self, reason: str, *, kill_switch_id: str, scope: str) -> None:
        super().__init__(
            f"traffic is halted by a kill switch ({scope}): {reason}",
            should_retry=False,
            details={"kill_switch_id": kill_switch_id, "scope": scope, "reason": reason},
        )
        self.kill_switch_id = kill_switch_id


class AliasUnknown(GatewayError):
    status_code = 404
    error_type = "model_not_found"


class RouteUnknown(GatewayError):
    status_code = 404
    error_type = "not_found"


class StoredUnknown(RouteUnknown):
    """Nobody is told whether another project has it."""

    def __init__(self, kind: str, upstream_id: str, *, param: str | None = None) -> None:
        super().__init__(f"there is no {kind.replace('_', ' ')} `{upstream_id}`", param=param)


class MethodNotAllowed(RouteUnknown):
    """`allowed` is what the path takes, as the `Allow` header has it."""

    status_code = 405
    error_type = "method_not_allowed"

    def __init__(self, message: str, *, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class IdempotencyConflict(GatewayError):
    """`request_id` is that of the first request under the key; its receipt says what became of it."""

    status_code = 409
    error_type = "idempotency_conflict"
    reason = "the `Idempotency-Key` of this request was used before"

    def __init__(self, request_id: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(
            f"{self.reason} (request {request_id})",
            retry_after_s=retry_after_s,
            should_retry=retry_after_s is not None,
            details={"first_request_id": request_id},
        )


class IdempotencyKeyInUse(IdempotencyConflict):
    error_type = "idempotency_key_in_use"
    reason = "the first request under this `Idempotency-Key` is still being answered: ask again for its answer"


class IdempotencyKeyReused(IdempotencyConflict):
    status_code = 422
    error_type = "idempotency_key_reused"
    reason = "this `Idempotency-Key` was used for another request: a new request needs a new key"


class OutcomeUnknown(IdempotencyConflict):
    error_type = "idempotency_outcome_unknown"
    reason = (
        "the worker that served the first request under this `Idempotency-Key` died before it had the whole answer; the provider "
        "may have charged for it, so it is not repeated: its receipt says what it cost, and a new key asks anew"
    )


class AnswerNotKept(IdempotencyConflict):
    status_code = 410
    error_type = "idempotency_answer_not_kept"
    reason = (
        "the first request under this `Idempotency-Key` was carried out, but its answer was too large to be kept, or never "
        "complete; it is not repeated: its receipt says what it cost, and a new key asks anew"
    )


class Exceeded(GatewayError):
    """`counter_key` names the counter that has no room (`budgets.gate`); a deployment whose calls count in others may have some."""

    status_code = 429
    counter_key = ""


class BudgetExceeded(Exceeded):
    error_type = "budget_exceeded"


class LimitExceeded(Exceeded):
    error_type = "rate_limit_exceeded"


class ProviderLimitReached(GatewayError):
    """Every deployment that could serve has said that its provider's rate limit is used up."""

    status_code = 429
    error_type = "provider_limit_reached"


class UnpricedModel(GatewayError):
    status_code = 403
    error_type = "model_not_priced"


class UpstreamFailed(GatewayError):
    """Something between us and the provider. `may_have_been_billed`: whether the provider may charge for it."""

    status_code = 502
    error_type = "upstream_error"

    def __init__(self, message: str, *, may_have_been_billed: bool, retry_after_s: int | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.may_have_been_billed = may_have_been_billed


class UpstreamUnreachable(UpstreamFailed):
    error_type = "upstream_unreachable"
    transient = True


class UpstreamBroken(UpstreamFailed):
    error_type = "upstream_protocol_error"
    transient = True


class CredentialRefused(UpstreamBroken):
    """The provider does not take the gateway's credential. To the client it is a broken upstream like any other; the ledger
    names it, for alerts to find."""

    error_type = CREDENTIAL_REFUSED

    def __init__(self, message: str) -> None:
        super().__init__(message, may_have_been_billed=False)
        self.code = UpstreamBroken.error_type


class UpstreamTimedOut(UpstreamFailed):
    status_code = 504
    error_type = "upstream_timeout"
    transient = True


class UpstreamRefused(UpstreamFailed):
    """The provider answered with an error status. `body` is its own answer where the client speaks its dialect, else None;
    `headers` are those that may cross."""

    error_type = "upstream_refused"

    def __init__(
        self,
        status_code: int,
        message: str,
        *,
        kind: str,
        code: str,
        param: str,
        body: bytes | None,
        headers: list[tuple[bytes, bytes]],
    ) -> None:
        """`kind`, `code` and `param` are the provider's words, "" where it has none."""
        super().__init__(f"the provider answered {status_code}: {message}", may_have_been_billed=False)
        # A client error of the provider is the client's; a failure of the provider is one of a gateway's.
        self.status_code = status_code if status_code < 500 else 502
        self.error_type = str(status_code)
        self.transient = status_code in TRANSIENT_STATUS_CODES
        self.code = code or "upstream_error"
        self.param = param or None
        self.details = {"upstream_status": status_code, **({"upstream_type": kind} if kind else {})}
        self.upstream_status = status_code
        self.body = body
        self.headers = headers


class UpstreamStreamFailed(UpstreamFailed):
    """The provider reported an error inside a stream that had begun."""

    error_type = "upstream_stream_error"

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(f"the provider failed in the middle of its answer: {message}", may_have_been_billed=True)
        self.code = code or self.error_type


# 408, 409, 424 (Bedrock: the model failed) and 425 are about this connection or moment; 429 and 5xx about this deployment. Another may do better.
TRANSIENT_STATUS_CODES = frozenset({408, 409, 424, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})


class Unavailable(GatewayError):
    """A dependency of ours is down, and no call is made without a hold."""

    status_code = 503
    error_type = "service_unavailable"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message, retry_after_s=retry_after_s)


class ClientGone(GatewayError):
    status_code = 499
    error_type = "client_gone"


class LeaseLost(Unavailable):
    """This worker has not been heard, or has not heard, for its lease: it stops spending."""

    error_type = "worker_lease_lost"
