"""The story of a request, and the ASGI application that tells it. Holds the flow; the stages compute."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from math import inf
from typing import NamedTuple

import structlog
from msgspec import structs

from proxy.admission import Admission, Downgrade
from proxy.attempt import Attempt, Outcome
from proxy.authenticate import KeyCache, Subject, authenticate, presented_key
from proxy.cache import look_in_cache
from proxy.call import call_provider, open_session
from proxy.clock import Clock
from proxy.control import Control
from proxy.describe import Described, describe
from proxy.dialects.dialect import Call, Dialect
from proxy.dialects.stored import CANCEL, DELETE, StoredDialect
from proxy.dialects.table import CONVERSE, INFER, MODELS, RECEIPT, STORED, STORED_LIST, TABLE, Match, dialect_of
from proxy.errors import (
    AliasUnknown,
    BudgetExceeded,
    CannotCarry,
    ClientGone,
    Exceeded,
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    RouteUnknown,
    TrafficHalted,
    Unavailable,
    UpstreamFailed,
    UpstreamRefused,
)
from proxy.follow import Follower
from proxy.guard import guard
from proxy.headroom import Headrooms
from proxy.idempotency import HEADER as IDEMPOTENCY_KEY
from proxy.idempotency import Answer, Idempotency
from proxy.ids import is_id
from proxy.live import LiveRequest, LiveRequests
from proxy.metrics import Counts
from proxy.prepare import Prepared, prepare
from proxy.providers.provider import Kept
from proxy.realtime import converse
from proxy.receipts import Receipts
from proxy.receive import Receive, Request, Scope, Send, body_at_hand, read_body
from proxy.registry import Registry, Upstream
from proxy.relay import answers_in_stream, relay_stream, relay_whole
from proxy.respond import JSON, Responder
from proxy.retries import Retries
from proxy.route import Turn, allowed_aliases, choose_route, halted, passed_over
from proxy.stored import Collecting, OwnList, Stored, place_anywhere
from proxy.wire.http1 import UpstreamPool, UpstreamResponse
from proxy.wire.websocket import WebSocket

log = structlog.get_logger()

# A client that reads nothing any more must not keep the last words of its stream from being given up.
LAST_WORDS_S = 1.0

StatusReader = Callable[[], Awaitable[bytes]]


class Exchange(NamedTuple):
    """One client request and all that belongs to answering it."""

    request: Request
    receive: Receive
    responder: Responder
    live: LiveRequest
    dialect: Dialect
    parameters: Mapping[str, str]


Handler = Callable[[Exchange], Awaitable[None]]
Relay = Callable[[UpstreamResponse, Attempt, Outcome, Responder, Admission], Awaitable[None]]
Remember = Callable[[Attempt, Sequence[Kept]], None]


class Gateway:
    """The ASGI application's HTTP side. Everything it needs is handed to it; it owns none of it."""

    def __init__(
        self,
        *,
        control: Control,
        admission: Admission,
        stored: Stored,
        idempotency: Idempotency,
        receipts: Receipts,
        headrooms: Headrooms,
        follower: Follower,
        keys: KeyCache,
        pool: UpstreamPool,
        live: LiveRequests,
        clock: Clock,
        counts: Counts,
        metrics: StatusReader,
        body_bytes_max: int,
    ) -> None:
        self._control = control
        self._admission = admission
        self._stored = stored
        self._idempotency = idempotency
        self._receipts = receipts
        self._headrooms = headrooms
        self._follower = follower
        self._keys = keys
        self._pool = pool
        self._live = live
        self._clock = clock
        self._counts = counts
        self._metrics = metrics
        self._body_bytes_max = body_bytes_max
        self._retries = Retries()
        self.is_draining = False
        self._actions: dict[str, Handler] = {
            INFER: self._infer,
            CONVERSE: self._converse,
            MODELS: self._list_models,
            STORED: self._call_stored,
            STORED_LIST: self._list_stored,
            RECEIPT: self._show_receipt,
        }
        self._own: dict[str, Handler] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": self._show_metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, to its end: whatever happens, the client gets an answer in its own dialect or a cut stream's last
        words, and the request is no longer live."""
        task: asyncio.Task[None] = scope["tollgate.task"]
        request, live = Request(scope), LiveRequest(task)
        match = TABLE.find(request.method, request.raw_path, request.headers)
        dialect = match.endpoint.dialect if match.endpoint is not None else dialect_of(request.path)
        responder = Responder(send, request, dialect)
        scope["tollgate.client_gone"] = live.client_gone  # Called by the server protocol when the connection is lost.
        began_at_s = self._clock.monotonic_s()
        self._live.add(live)
        try:
            handler = self._handler(request, match)
            exchange = Exchange(request, receive, responder, live, dialect, match.parameters)
            if IDEMPOTENCY_KEY in request.headers and request.method == "POST":
                await self._once(handler, exchange)
            else:
                await handler(exchange)
        except GatewayError as error:
            await self._last_words(responder, error)
        except asyncio.CancelledError:
            task.uncancel()
            await self._last_words(responder, live.cut_by or Unavailable("this worker is stopping"))
        except Exception:
            log.exception("request failed", request_id=request.request_id, path=request.path)
            await self._last_words(responder, GatewayError("the gateway failed; the request id names this failure"))
        finally:
            self._live.remove(live)
            status_code = responder.status_code or ClientGone.status_code
            self._counts.request_done(status_code, (self._clock.monotonic_s() - began_at_s) * 1000)

    def _handler(self, request: Request, match: Match) -> Handler:
        """Raises `RouteUnknown` or `MethodNotAllowed`."""
        if match.endpoint is not None:
            return self._actions[match.endpoint.action]
        methods = match.methods
        if request.path in self._own:
            if request.method in ("GET", "HEAD"):
                return self._own[request.path]
            methods = ("GET",)
        if methods:
            allowed = ", ".join(f"{method}, HEAD" if method == "GET" else method for method in methods)
            raise MethodNotAllowed(f"{request.path} takes {allowed}", allowed=allowed)
        raise RouteUnknown(f"there is no {request.path}: docs/compatibility.md lists what there is")

    async def _last_words(self, responder: Responder, error: GatewayError) -> None:
        try:
            async with asyncio.timeout(LAST_WORDS_S):
                await responder.fail(error)
        except TimeoutError:
            log.info("client does not read its stream's end", request_id=responder.request_id)

    # The story of a request

    async def _infer(self, exchange: Exchange) -> None:
        responder = exchange.responder
        described = await self._describe(exchange)
        cached = look_in_cache(described)
        if cached is not None:
            await responder.whole(200, cached, [JSON])
            return
        exchange.live.is_stream = described.call.is_stream
        described, chosen = choose_route(described, self._control.kills, random.random, self._headrooms)
        route = chosen
        if described.call.follows:
            described, route = await self._stored.follow_on(described, route)
        if described.call.file_ids:
            described, route = await self._stored.with_files(described, route)
        if len(route) < len(chosen):
            others = [upstream for upstream in chosen if upstream not in route]
            described = passed_over(described, others, "does not have what the call refers to")
        await self._try_in_turn(exchange, described, route)

    async def _try_in_turn(self, exchange: Exchange, described: Described, route: Sequence[Upstream]) -> None:
        """Until one answers. Where a budget asks for a cheaper alias, that one's go first."""
        failure: GatewayError | None = None
        may_downgrade, has_put_off = _may_downgrade(described.call), False
        # Most routes are of one, and that is the hot path.
        turns = [(described, route[0])] if len(route) == 1 else [(described, upstream) for upstream in route]
        self._retries.begin()
        while turns:
            described, upstream = turns.pop(0)
            deployment_id = upstream.deployment.deployment_id
            if failure is not None and failure.transient and not await self._retries.may_try(deployment_id):
                turns = _told(turns, described, [upstream], "keeps failing")
                continue
            try:
                prepared = prepare(described, upstream, exchange.live.attempts + 1)
                await self._attempt(
                    exchange, prepared, remember=self._stored.remember, may_downgrade=may_downgrade, others=turns
                )
            except Downgrade as downgrade:
                may_downgrade, failure = False, None  # It might be tried, so may what takes its place.
                turns = [*self._cheaper(described, downgrade.alias), (described, upstream), *turns]
            except CannotCarry as error:
                failure = failure or error  # What a provider that was asked has said tells the client more.
                turns = _told(turns, described, [upstream], f"cannot carry {', '.join(error.lost)}")
            except Exceeded as error:
                if exchange.live.attempts == prepared.attempt_number:
                    raise  # It was admitted, and ran.
                failure = _sooner(failure, error)
                left = self._admission.avoiding(error.counter_key, turns)
                kept = [other for _, other in left]
                out = [upstream, *(other for _, other in turns if other not in kept)]
                turns = _told(left, described, out, error.message)
                if left and isinstance(error, BudgetExceeded) and not has_put_off:
                    # Where nobody else has room it waits for some, and the first of a route is the best.
                    has_put_off = True
                    turns.append((described, upstream))
            except (UpstreamFailed, TrafficHalted, InvalidRequest) as error:
                if isinstance(error, UpstreamFailed) and error.transient:
                    self._retries.failed(deployment_id)
                if exchange.responder.has_started or not _may_do_better(error, described):
                    raise
                failure = error
            else:
                self._retries.answered(deployment_id)
                return
        assert failure is not None, "a route has at least one upstream"
        raise failure

    def _cheaper(self, described: Described, alias: str) -> list[Turn]:
        """The call under the cheaper alias that a budget asks for; none where that one cannot serve it."""
        asked = described.call
        call = structs.replace(asked, alias=alias, prompt=None)
        cheaper = described._replace(call=call, candidates=(), downgraded_from=asked.alias)
        try:
            cheaper, route = choose_route(cheaper, self._control.kills, random.random, self._headrooms)
        except GatewayError:
            return []
        return [(cheaper, upstream) for upstream in route]

    async def _once(self, handler: Handler, exchange: Exchange) -> None:
        """A request with an `Idempotency-Key`: the first is served, and whoever repeats it gets its answer."""
        request, live = exchange.request, exchange.live
        subject = await self._authenticate(request)
        request.body = await read_body(exchange.receive, self._body_bytes_max)
        for field in subject.kill_fields:
            if field in self._control.kills:
                raise halted(self._control.kills[field])
        claim = await self._idempotency.claim(subject.key.key_id, request, live, exchange.dialect.request_headers)
        if isinstance(claim, Answer):
            await exchange.responder.replay(*claim)
            return
        # It goes on without its client, and its claim ends with it, last words and all.
        request.scope["tollgate.client_gone"] = claim.client_gone
        request.scope["tollgate.task"].add_done_callback(claim.end)
        exchange.responder.tap(claim.recording)
        await handler(exchange._replace(receive=body_at_hand(request.body)))

    async def _converse(self, exchange: Exchange) -> None:
        if "tollgate.upgrade" not in exchange.request.scope:
            raise InvalidRequest(f"{exchange.request.path} is spoken on a WebSocket", code="websocket_required")
        await self._infer(exchange)

    async def _describe(self, exchange: Exchange) -> Described:
        """Who asks, and for what."""
        request = exchange.request
        subject = await self._authenticate(request)  # Before the body: a stranger's takes no memory here.
        request.body = await read_body(exchange.receive, self._body_bytes_max)
        described = guard(describe(request, subject, exchange.dialect, exchange.parameters))
        exchange.responder.dialect = described.call.dialect
        return described

    async def _attempt(
        self,
        exchange: Exchange,
        prepared: Prepared,
        *,
        remember: Remember,
        relay: Relay | None = None,
        may_downgrade: bool = False,
        others: Sequence[Turn] = (),
    ) -> None:
        """One upstream call under one hold. Leaving settles what was counted, however it ends."""
        live, described = exchange.live, prepared.described
        if live.is_client_gone:
            raise ClientGone("the client left")  # It ran on; another attempt would be for nobody.
        live.kill_fields = described.subject.kill_fields + prepared.upstream.kill_fields
        live.runs_on = prepared.upstream.provider.runs_on and not described.call.is_session
        attempt = await self._admission.admit(prepared, may_downgrade=may_downgrade, others=others)
        live.attempts = prepared.attempt_number
        attempt.remember = remember
        outcome = Outcome(may_have_been_billed=True)
        response: UpstreamResponse | WebSocket | None = None
        try:
            if described.call.is_session:
                response = session = await open_session(
                    self._pool, attempt, exchange.request, self._clock, self._headrooms
                )
                await converse(session, attempt, outcome, exchange.responder, self._admission)
                return
            response = answer = await call_provider(self._pool, attempt, exchange.request, self._clock, self._headrooms)
            if relay is None:
                relay = relay_stream if answers_in_stream(answer, attempt) else relay_whole
            await relay(answer, attempt, outcome, exchange.responder, self._admission)
        except UpstreamFailed as error:
            outcome.error_type = error.error_type
            outcome.status_code = error.status_code
            outcome.may_have_been_billed = error.may_have_been_billed
            raise
        except GatewayError as error:
            _note_cut(outcome, error)
            raise
        except asyncio.CancelledError:
            _note_cut(outcome, live.cut_by)
            raise
        finally:
            if response is not None:
                response.close()
            live.may_have_been_billed |= attempt.is_dispatched and outcome.may_have_been_billed
            self._settle(attempt, outcome)

    def _settle(self, attempt: Attempt, outcome: Outcome) -> None:
        cost = self._admission.settle(attempt, outcome)
        usage = attempt.event.usage
        if attempt.event.state != "suspense":  # Else it is counted when it is known.
            self._counts.attempt_settled(usage.input_tokens, usage.output_tokens, cost)
        if cost > attempt.held_nanos:
            # The bill is what it is, so the ledger has it. That it can happen is the deployment's price or bounds being wrong.
            self._counts.over_hold += 1
            log.warning(
                "an attempt cost more than was held for it",
                deployment=attempt.event.deployment,
                attempt_id=attempt.attempt_id,
                cost_nanos=cost,
                held_nanos=attempt.held_nanos,
            )

    # What providers keep

    async def _call_stored(self, exchange: Exchange) -> None:
        """About one thing: it is made, read, cancelled, deleted."""
        described = await self._describe(exchange)
        place = await self._stored.place(described, exchange.request.headers, self._control.kills, random.random)
        dialect = exchange.dialect
        assert isinstance(dialect, StoredDialect), "the table says so"
        if dialect.verb is DELETE and place.attempt_id:
            await self._follower.look(place.attempt_id)  # Afterwards nobody could say what it has used.
        prepared = prepare(place.described, place.upstream, attempt_number=1)
        remember = partial(self._stored.remember, bounds=place.bounds)
        await self._attempt(exchange, prepared, remember=remember)
        if dialect.verb is DELETE:
            self._stored.forget(dialect.kind, exchange.parameters["id"])
        elif dialect.verb is CANCEL:
            await self._follower.hurry(place.attempt_id)

    async def _list_stored(self, exchange: Exchange) -> None:
        """The provider's list, without what is other projects'."""
        described = await self._describe(exchange)
        place = place_anywhere(described, exchange.request.headers, self._control.kills)
        own = OwnList(self._stored, place.described.call)
        while not own.is_complete:
            asked = place.described._replace(call=own.next_page(place.described.call))
            page = Collecting()
            prepared = prepare(asked, place.upstream, exchange.live.attempts + 1)
            await self._attempt(exchange, prepared, remember=self._stored.remember, relay=page)
            await own.take(page.body, described.subject)
        await exchange.responder.whole(200, own.render(), [JSON])

    def _authenticate(self, request: Request) -> Awaitable[Subject]:
        return authenticate(request.headers, self._keys, self._registry(), self._clock.now_s)

    def _registry(self) -> Registry:
        if self._control.registry is None:
            raise Unavailable("no configuration has reached this worker yet")
        return self._control.registry

    # The small answers

    async def _list_models(self, exchange: Exchange) -> None:
        subject = await self._authenticate(exchange.request)
        aliases = allowed_aliases(subject.key, subject.registry)
        wanted = exchange.parameters.get("model")
        if wanted is not None:
            aliases = [alias for alias in aliases if alias.name == wanted]
            if not aliases:
                raise AliasUnknown(f"the model `{wanted}` does not exist, or this key may not use it", param="model")
        await exchange.responder.whole(200, exchange.dialect.render_models(aliases, exchange.parameters), [JSON])

    async def _show_receipt(self, exchange: Exchange) -> None:
        await self._authenticate(exchange.request)
        wanted = exchange.parameters["id"]
        if not self._receipts.are_served:
            raise RouteUnknown("receipts are not served here: the gateway was not told where its control plane is")
        if not is_id(wanted):
            raise RouteUnknown(f"`{wanted}` is not the id of a request: `x-request-id` says it")
        answer = await self._receipts.find(wanted, presented_key(exchange.request.headers))
        if answer.status_code == HTTPStatus.NOT_FOUND:
            raise RouteUnknown(f"there is no receipt of `{wanted}`: it is unknown, or reached no provider")
        headers = [JSON, (b"retry-after", answer.retry_after)] if answer.retry_after else [JSON]
        await exchange.responder.whole(answer.status_code, answer.body, headers)

    async def _healthz(self, exchange: Exchange) -> None:
        await exchange.responder.whole(200, b'{"status":"alive"}', [JSON])

    async def _readyz(self, exchange: Exchange) -> None:
        if self.is_draining or self._control.registry is None or not self._admission.is_ready:
            raise Unavailable("this worker does not admit requests now")
        await exchange.responder.whole(200, b'{"status":"ready"}', [JSON])

    async def _show_metrics(self, exchange: Exchange) -> None:
        await exchange.responder.whole(200, await self._metrics(), [(b"content-type", b"text/plain; version=0.0.4")])


def _may_downgrade(call: Call) -> bool:
    """Not where it must be this provider: what the call refers to is there, or the client named it."""
    return not (call.follows or call.file_ids or call.capability == "passthrough")


def _told(turns: Sequence[Turn], described: Described, upstreams: Sequence[Upstream], reason: str) -> list[Turn]:
    """Those that are left, with these of the call's candidates out of the route."""
    alias = described.call.alias
    return [(passed_over(of, upstreams, reason) if of.call.alias == alias else of, other) for of, other in turns]


def _sooner(failure: GatewayError | None, error: Exceeded) -> GatewayError:
    """What the client is told that is refused by all: the refusal that ends first. What a provider has said comes before."""
    if isinstance(failure, Exceeded):
        return min(failure, error, key=_ends_in_s)
    return error if failure is None or isinstance(failure, CannotCarry) else failure


def _ends_in_s(error: GatewayError) -> float:
    return inf if error.retry_after_s is None else error.retry_after_s


def _may_do_better(error: GatewayError, described: Described) -> bool:
    """Whether the next deployment is worth trying: a passing failure, a kill switch on this model or provider only, or a request
    that is wrong where a cheaper alias goes, which the client has not asked for."""
    if isinstance(error, TrafficHalted):
        return error.details.get("scope") in ("model", "provider")
    return error.transient or (described.downgraded_from != "" and isinstance(error, InvalidRequest | UpstreamRefused))


def _note_cut(outcome: Outcome, error: GatewayError | None) -> None:
    if error is None:
        outcome.error_type = "shutdown"
        return
    outcome.error_type = error.error_type
    outcome.status_code = error.status_code
    if isinstance(error, TrafficHalted):
        outcome.kill_switch_id = error.kill_switch_id
