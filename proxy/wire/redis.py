"""Redis for the data path: one connection that pipelines by itself, and one that listens. RESP2; no cluster, no pool.

Commands of one loop tick leave in one write and their replies come back in order, so a script call costs a few
microseconds of CPU. Nothing is queued while Redis is away and nothing is sent twice: whoever asked is told at once, and
knows best what may be repeated.
"""

import asyncio
import hashlib
import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast
from urllib.parse import parse_qs, unquote, urlsplit

import hiredis

TIMEOUT_S = 0.2
CONNECT_TIMEOUT_S = 2.0
RECONNECT_MIN_S = 0.01
RECONNECT_MAX_S = 0.5
PING_EVERY_S = 1.0
UNANSWERED_PINGS_MAX = 3

# A deadline is noticed at most a tenth of the timeout late.
_TICKS_PER_TIMEOUT = 10
_NOTHING = object()
_NOSCRIPT = "NOSCRIPT"
_READONLY = "READONLY"

# Its stub knows tuples of one item only.
_encode = cast("Callable[[tuple[bytes | str | int, ...]], bytes]", hiredis.pack_command)

log = logging.getLogger(__name__)

_PING = _encode((b"PING",))


class RedisError(Exception):
    pass


class RedisUnavailable(RedisError):
    """Not connected, or lost before the reply came: what was sent may have been applied, or not."""


class RedisReplyError(RedisError):
    """The server answered with an error."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis listens: `redis://[user:password@]host[:port][/db]`, `rediss://…`, or `unix:///path[?db=0]`.

    A certificate is always verified; `ssl_ca_certs=path` names the authority, `ssl_cert_reqs=required` says what is so.
    """

    host: str = ""
    port: int = 6379
    path: str = ""
    database: int = 0
    is_tls: bool = False
    ca_path: str | None = None
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises `ValueError`, whose text does not quote the URL: it may hold a password."""
        parts = urlsplit(url)
        if parts.scheme not in {"redis", "rediss", "unix"}:
            raise ValueError("a Redis URL begins with redis://, rediss:// or unix://")
        is_unix = parts.scheme == "unix"
        if is_unix and not parts.path:
            raise ValueError("a unix:// URL names the path of a socket")
        if not is_unix and not parts.hostname:
            raise ValueError("a Redis URL names a host")
        options = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        database = options.pop("db", "" if is_unix else parts.path.strip("/")) or "0"
        if not database.isdecimal():
            raise ValueError("the database of a Redis URL is a number")
        if options.pop("ssl_cert_reqs", "required").lower() not in {"required", "cert_required"}:
            raise ValueError("the certificate of a rediss:// URL is always required")
        ca_path = options.pop("ssl_ca_certs", None)
        if options:
            raise ValueError(f"unknown options in the Redis URL: {', '.join(sorted(options))}")
        return cls(
            host=parts.hostname or "",
            port=parts.port or 6379,
            path=unquote(parts.path) if is_unix else "",
            database=int(database),
            is_tls=parts.scheme == "rediss",
            ca_path=ca_path,
            username=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
        )

    def greeting(self) -> list[tuple[str | int, ...]]:
        """The commands that come before all others."""
        commands: list[tuple[str | int, ...]] = []
        if self.username:
            commands.append(("AUTH", self.username, self.password))
        elif self.password:
            commands.append(("AUTH", self.password))
        if self.database:
            commands.append(("SELECT", self.database))
        return commands

    async def connect(self, protocol: asyncio.Protocol) -> None:
        """Raises `OSError` (a `TimeoutError` is one)."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            if self.path:
                await loop.create_unix_connection(lambda: protocol, self.path)
                return
            context = ssl.create_default_context(cafile=self.ca_path) if self.is_tls else None
            await loop.create_connection(lambda: protocol, self.host, self.port, ssl=context)


class _Client:
    """Keeps one connection: makes it ready, stays with it until it is lost, makes another."""

    name = "redis"

    def __init__(self, url: str) -> None:
        self._address = Address.parse(url)
        self._keeper: asyncio.Task[None] | None = None
        self._is_ready = asyncio.Event()
        self._has_tried = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        return self._is_ready.is_set()

    async def wait_until_ready(self) -> None:
        """For as long as it takes: put a timeout around it."""
        await self._is_ready.wait()

    async def wait_until_tried(self) -> None:
        """Until it is ready, or could not be made so at the first attempt."""
        await self._has_tried.wait()

    def start(self) -> None:
        """Connect in the background, and again whenever the connection is lost."""
        assert self._keeper is None, "a client is started once"
        self._keeper = asyncio.create_task(self._keep_connected())

    async def close(self) -> None:
        """Replies still to come are not waited for. Idempotent."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])

    def _new_connection(self) -> "_Connection":
        raise NotImplementedError

    async def _make_ready(self, connection: "_Connection") -> None:
        raise NotImplementedError

    async def _stay(self, connection: "_Connection") -> None:
        await connection.lost

    def _lost(self) -> None:
        """A connection that was ready is gone."""

    async def _keep_connected(self) -> None:
        delay_s = RECONNECT_MIN_S
        is_known_down = False
        while True:
            connection = self._new_connection()
            connection.lost.add_done_callback(self._note_loss)
            try:
                await self._address.connect(connection)
                await self._make_ready(connection)
                if connection.is_open:
                    self._is_ready.set()
                    self._has_tried.set()
                    log.info("%s is connected", self.name)
                    delay_s, is_known_down = RECONNECT_MIN_S, False
                    await self._stay(connection)
            except (OSError, RedisError) as error:
                connection.drop(str(error) or type(error).__name__)
            except Exception:
                # The outermost loop of this task: a mistake in a hook must not leave the worker without Redis for good.
                if connection.is_open and not is_known_down:
                    is_known_down = True
                    log.exception("%s: the connection could not be made ready", self.name)
            finally:
                connection.drop("closed")
            if not is_known_down:
                log.warning("%s is not connected: %s", self.name, connection.reason)
                is_known_down = True
            self._has_tried.set()
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, RECONNECT_MAX_S)

    def _note_loss(self, _lost: object) -> None:
        if self._is_ready.is_set():
            self._is_ready.clear()
            self._lost()


class RedisPipeline(_Client):
    """The connection for commands. Use it in the event loop that started it.

    `on_connect` runs after each connect, before `is_ready` turns true; until it is done only it may send commands, so
    that nobody meets a Redis that has not been brought up to date. When it raises, the connection is dropped and made
    anew. `on_loss` is called once for each connection that was ready and is lost.
    """

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        super().__init__(url)
        self.on_connect: Callable[[RedisPipeline], Awaitable[None]] | None = None
        self.on_loss: Callable[[], None] | None = None
        self._timeout_s = timeout_s
        self._scripts: dict[str, _Script] = {}
        self._connection: _CommandConnection | None = None

    @property
    def is_ready(self) -> bool:
        return self._connection is not None and self._connection.is_ready

    def register_script(self, text: str) -> str:
        """Have `text` loaded on every connection made from now on. Returns its SHA-1 in hexadecimal."""
        script = _Script(text)
        self._scripts[script.sha1] = script
        return script.sha1

    def call(self, *command: bytes | str | int) -> "asyncio.Future[Any]":
        """Send a command with the others of this tick; the future has its reply (bytes, int, list or None).

        Raises `RedisUnavailable` when not connected; the future raises it when the connection is lost before the
        reply, and `RedisReplyError` when that is an error. Cancelling the future takes nothing back.
        """
        return self._sender().send(_encode(command), None, b"")

    def script(self, sha1: str, argument: bytes) -> "asyncio.Future[Any]":
        """Run a registered script with one ARGV and no KEYS; otherwise as `call`.

        A server that lost its scripts gets the text with the same argument: by its own word it had not run it.
        """
        script = self._scripts[sha1]
        return self._sender().send(b"%b$%d\r\n%b\r\n" % (script.call_head, len(argument), argument), script, argument)

    def _sender(self) -> "_CommandConnection":
        connection = self._connection
        if connection is None or not connection.is_open:
            raise RedisUnavailable("Redis is not connected")
        # Until the hook is done, the connection is the hook's alone.
        if not connection.is_ready and asyncio.current_task() is not self._keeper:
            raise RedisUnavailable("Redis is connected, but not yet up to date")
        return connection

    def _new_connection(self) -> "_CommandConnection":
        self._connection = _CommandConnection(self._timeout_s)
        return self._connection

    async def _make_ready(self, connection: "_Connection") -> None:
        assert isinstance(connection, _CommandConnection)
        loads = (script.load_command for script in self._scripts.values())
        greeting = [*self._address.greeting(), *loads, ("PING",)]
        replies = await asyncio.gather(*(self.call(*command) for command in greeting), return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        if self.on_connect is not None:
            await self.on_connect(self)
        connection.is_ready = connection.is_open

    def _lost(self) -> None:
        if self.on_loss is not None:
            self.on_loss()


class RedisSubscriber(_Client):
    """The connection that listens. `on_message` gets channel and body; a message sent while it is away is gone.

    `on_connect` runs once all channels are subscribed, each time: the moment to look for what was missed.
    """

    name = "redis push"

    def __init__(
        self,
        url: str,
        channels: Sequence[str | bytes],
        on_message: Callable[[bytes, bytes], None],
        on_connect: Callable[[], Awaitable[None]] | None = None,
        *,
        ping_every_s: float = PING_EVERY_S,
    ) -> None:
        super().__init__(url)
        self._channels = tuple(channels)
        self._on_message = on_message
        self._on_connect = on_connect
        self._ping_every_s = ping_every_s

    def _new_connection(self) -> "_PushConnection":
        return _PushConnection(len(self._channels), self._on_message)

    async def _make_ready(self, connection: "_Connection") -> None:
        assert isinstance(connection, _PushConnection)
        for command in (*self._address.greeting(), ("SUBSCRIBE", *self._channels)):
            connection.write(_encode(command))
        await asyncio.wait_for(connection.subscribed, CONNECT_TIMEOUT_S)
        if self._on_connect is not None:
            await self._on_connect()

    async def _stay(self, connection: "_Connection") -> None:
        assert isinstance(connection, _PushConnection)
        while connection.is_open:
            if connection.unanswered_pings >= UNANSWERED_PINGS_MAX:
                connection.drop("no sign of life in time")
                return
            connection.unanswered_pings += 1
            connection.write(_PING)
            await asyncio.wait([connection.lost], timeout=self._ping_every_s)


class _Script:
    __slots__ = ("call_head", "load_command", "sha1", "text")

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        # What Redis names a script by; no secret hangs on it.
        self.sha1 = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()
        self.load_command = ("SCRIPT", "LOAD", self.text)
        self.call_head = b"*4\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n0\r\n" % self.sha1.encode()


class _Connection(asyncio.Protocol):
    """One socket from its making to its loss; `reason` says why it was lost."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self.loop.create_future()
        self.reason = ""
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(notEnoughData=_NOTHING, replyError=RedisReplyError)

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self.lost.done()

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self.lost.done():
            self._transport.write(data)

    def drop(self, reason: str) -> None:
        """The first reason counts. Idempotent."""
        if not self.lost.done():
            self.reason = reason
            self.lost.set_result(None)
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.lost.done():
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            self._read_replies()
        except hiredis.ProtocolError:
            self.drop("the server does not speak the protocol of Redis")

    def eof_received(self) -> None:
        self.drop("the server hung up")

    def connection_lost(self, exc: Exception | None) -> None:
        self.drop(f"the connection broke: {type(exc).__name__}" if exc else "the server hung up")

    def _read_replies(self) -> None:
        raise NotImplementedError


class _CommandConnection(_Connection):
    """Commands out in one write per tick, replies matched in order, a deadline for each."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__()
        self.is_ready = False
        self._unsent: list[bytes] = []
        # Whoever is cancelled keeps its place in the line: its reply comes all the same, and is nobody else's.
        self._pending: deque[tuple[asyncio.Future[Any], _Script | None, bytes]] = deque()
        self._replied = 0
        # How many commands had been sent at each of the last ticks. Ticks, not the clock: after a pause of this
        # process, replies that wait in the socket are read before they are called late.
        self._sent_by_tick: deque[int] = deque(maxlen=_TICKS_PER_TIMEOUT)
        self._tick_s = timeout_s / _TICKS_PER_TIMEOUT
        self._ticker: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._ticker = self.loop.call_later(self._tick_s, self._tick)

    def send(self, encoded: bytes, script: _Script | None, argument: bytes) -> "asyncio.Future[Any]":
        future = self.loop.create_future()
        self._pending.append((future, script, argument))
        self._write_soon(encoded)
        return future

    def drop(self, reason: str) -> None:
        super().drop(reason)
        self.is_ready = False
        if self._ticker is not None:
            self._ticker.cancel()
        self._unsent.clear()
        while self._pending:
            future, _, _ = self._pending.popleft()
            if not future.done():
                future.set_exception(RedisUnavailable(f"Redis was lost before it replied: {self.reason}"))
                # Seen: a loss is told once, by this connection, and not again by each future that nobody awaits.
                future.exception()

    def _write_soon(self, encoded: bytes) -> None:
        if not self._unsent:
            self.loop.call_soon(self._flush)
        self._unsent.append(encoded)

    def _flush(self) -> None:
        unsent = self._unsent
        if unsent:
            self.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))
            unsent.clear()

    def _read_replies(self) -> None:
        next_reply = self._reader.gets
        pending = self._pending
        while (reply := next_reply()) is not _NOTHING:
            if not pending:
                self.drop("the server sent a reply that nobody asked for")
                return
            future, script, argument = pending.popleft()
            self._replied += 1
            if type(reply) is RedisReplyError:
                self._fail(reply, future, script, argument)
            elif not future.done():
                future.set_result(reply)

    def _fail(
        self, error: RedisReplyError, future: "asyncio.Future[Any]", script: _Script | None, argument: bytes
    ) -> None:
        if script is not None and str(error).startswith(_NOSCRIPT):
            # Not run, by the server's own word; with its text it runs and is known again. Also for one that was
            # cancelled: cancelling takes nothing back.
            self._pending.append((future, None, b""))
            self._write_soon(_encode((b"EVAL", script.text, b"0", argument)))
            return
        if not future.done():
            future.set_exception(error)
        if _READONLY in str(error):
            self.drop("the server has become a replica")  # Its name may lead to the new primary by now.

    def _tick(self) -> None:
        sent_by_tick = self._sent_by_tick
        if len(sent_by_tick) == _TICKS_PER_TIMEOUT and sent_by_tick[0] > self._replied:
            self.drop("no reply in time")
            return
        sent_by_tick.append(self._replied + len(self._pending))
        self._ticker = self.loop.call_later(self._tick_s, self._tick)


class _PushConnection(_Connection):
    def __init__(self, channels: int, on_message: Callable[[bytes, bytes], None]) -> None:
        super().__init__()
        self.subscribed: asyncio.Future[None] = self.loop.create_future()
        self.unanswered_pings = 0
        self._channels_missing = channels
        self._on_message = on_message

    def drop(self, reason: str) -> None:
        super().drop(reason)
        if not self.subscribed.done():
            self.subscribed.set_exception(RedisUnavailable(self.reason))
            self.subscribed.exception()  # Seen: there may be nobody who waits for it.

    def _read_replies(self) -> None:
        self.unanswered_pings = 0
        while (reply := self._reader.gets()) is not _NOTHING:
            match reply:
                case [b"message", bytes(channel), bytes(body)]:
                    self._on_message(channel, body)
                case [b"subscribe", *_]:
                    self._channels_missing -= 1
                    if self._channels_missing == 0 and not self.subscribed.done():
                        self.subscribed.set_result(None)
                case RedisReplyError() if not self.subscribed.done():
                    self.drop(f"the server refused: {reply}")
                    return
                case _:
                    pass  # A ping's answer. A Redis that takes no writes (its disk is full) refuses pings too, and lives.
