"""The two clients of Redis against a real one, and against servers that misbehave on purpose."""

import asyncio
import contextlib
import logging
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from proxy.wire.redis import (
    UNANSWERED_PINGS_MAX,
    Address,
    RedisPipeline,
    RedisReplyError,
    RedisSubscriber,
    RedisUnavailable,
)

PASSWORD = "a-password-that-must-never-show"
COUNT_TEXT = "return redis.call('INCRBY', 'count', ARGV[1])"
TIMEOUT_S = 20.0  # Nothing here takes as long, unless it hangs.
ECHO_TEXT = "return {'ok', ARGV[1]}"


Connect = Callable[..., Awaitable[RedisPipeline]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Call with a URL and options of the pipeline to get it ready. How late Redis may be is for the tests of that to say."""
    pipelines: list[RedisPipeline] = []

    async def start(url: str, *scripts: str, timeout_s: float = TIMEOUT_S) -> RedisPipeline:
        pipeline = RedisPipeline(url, timeout_s=timeout_s)
        for text in scripts:
            pipeline.register_script(text)
        pipelines.append(pipeline)
        pipeline.start()
        await asyncio.wait_for(pipeline.wait_until_ready(), TIMEOUT_S)
        return pipeline

    yield start
    for pipeline in pipelines:
        await pipeline.close()


Scripted = Callable[..., Awaitable[RedisPipeline]]


@pytest.fixture
async def scripted(connect: Connect) -> AsyncIterator[Scripted]:
    """Call with a function from what was read to what is answered, and options of the pipeline, to get one to a server that
    does so."""
    servers: list[asyncio.Server] = []

    async def start(answer: Callable[[bytes], bytes], **options: Any) -> RedisPipeline:
        class Server(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def data_received(self, data: bytes) -> None:
                self.transport.write(answer(data))

        servers.append(await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0))
        return await connect(f"redis://127.0.0.1:{servers[-1].sockets[0].getsockname()[1]}", **options)

    yield start
    for server in servers:
        server.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.005)


async def test_replies_come_back_to_whoever_asked(redis_url: str, connect: Connect) -> None:
    pipeline = await connect(redis_url)
    replies = await asyncio.gather(*(pipeline.call("ECHO", str(i)) for i in range(5_000)))
    assert replies == [str(i).encode() for i in range(5_000)]


async def test_replies_stay_as_redis_sent_them(redis_url: str, connect: Connect) -> None:
    pipeline = await connect(redis_url)
    assert await pipeline.call("SET", b"name", "ä") == b"OK"
    assert await pipeline.call(b"GET", "name") == "ä".encode()
    assert await pipeline.call("GET", "nothing") is None
    assert await pipeline.call("INCRBY", "number", 41) == 41
    assert await pipeline.call("MGET", "name", "nothing") == ["ä".encode(), None]


async def test_an_error_of_the_server_is_raised_and_shifts_nothing(redis_url: str, connect: Connect) -> None:
    pipeline = await connect(redis_url)
    answers = await asyncio.gather(
        pipeline.call("ECHO", "a"), pipeline.call("NONSENSE"), pipeline.call("ECHO", "b"), return_exceptions=True
    )
    assert answers[0] == b"a"
    assert isinstance(answers[1], RedisReplyError)
    assert answers[2] == b"b"


async def test_a_cancelled_caller_never_shifts_the_replies(redis_url: str, connect: Connect) -> None:
    pipeline = await connect(redis_url, ECHO_TEXT)
    sha1 = pipeline.register_script(ECHO_TEXT)
    seeded = random.Random(7)
    answered = 0

    async def ask(number: int) -> None:
        nonlocal answered
        text = b"%d" % number
        if number % 2:
            assert await pipeline.call("ECHO", text) == text
        else:
            assert await pipeline.script(sha1, text) == [b"ok", text]
        answered += 1

    for round_number in range(40):
        tasks = [asyncio.create_task(ask(round_number * 100 + i)) for i in range(100)]
        for _ in range(seeded.randrange(3)):
            await asyncio.sleep(0)
        for task in seeded.sample(tasks, 50):
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError)
    assert answered >= 2_000
    assert await pipeline.call("ECHO", "still in step") == b"still in step"


async def test_commands_of_one_tick_leave_in_one_write(scripted: Scripted) -> None:
    writes: list[bytes] = []

    def answer(data: bytes) -> bytes:
        writes.append(data)
        return b"+PONG\r\n" * data.count(b"PING")

    pipeline = await scripted(answer)
    await asyncio.gather(*(pipeline.call("PING") for _ in range(100)))
    assert len(writes) == 2, "one for the greeting, one for all the rest"


async def test_scripts_are_loaded_before_anything_else(redis_server: Any, connect: Connect) -> None:
    pipeline = await connect(redis_server.url, ECHO_TEXT)
    sha1 = pipeline.register_script(ECHO_TEXT)
    assert await pipeline.call("SCRIPT", "EXISTS", sha1) == [1]
    assert await pipeline.script(sha1, b"\x00binary\r\n") == [b"ok", b"\x00binary\r\n"]


async def test_forgotten_scripts_are_run_once_all_the_same(redis_url: str, connect: Connect) -> None:
    pipeline = await connect(redis_url, COUNT_TEXT)
    sha1 = pipeline.register_script(COUNT_TEXT)
    await pipeline.call("SCRIPT", "FLUSH")
    assert await asyncio.gather(*(pipeline.script(sha1, b"1") for _ in range(5))) == [1, 2, 3, 4, 5]
    assert await pipeline.call("SCRIPT", "EXISTS", sha1) == [1]


async def test_a_forgotten_script_of_a_cancelled_caller_is_run_too(redis_url: str, connect: Connect) -> None:
    pipeline = await connect(redis_url, COUNT_TEXT)
    sha1 = pipeline.register_script(COUNT_TEXT)
    await pipeline.call("SCRIPT", "FLUSH")
    future = pipeline.script(sha1, b"1")
    future.cancel()
    await pipeline.call("PING")
    assert await pipeline.call("GET", "count") == b"1"


async def test_nothing_is_queued_while_redis_is_away(redis_server: Any, connect: Connect) -> None:
    pipeline = await connect(redis_server.url, COUNT_TEXT)
    losses: list[float] = []
    pipeline.on_loss = lambda: losses.append(time.monotonic())
    redis_server.kill()
    await until(lambda: not pipeline.is_ready)
    with pytest.raises(RedisUnavailable):
        pipeline.call("PING")
    with pytest.raises(RedisUnavailable):
        pipeline.script(pipeline.register_script(COUNT_TEXT), b"1")
    await until(lambda: len(losses) == 1)
    redis_server.start()
    await asyncio.wait_for(pipeline.wait_until_ready(), TIMEOUT_S)
    assert await pipeline.call("GET", "count") is None
    assert len(losses) == 1


async def test_whoever_waits_when_redis_dies_is_told(redis_server: Any, connect: Connect) -> None:
    pipeline = await connect(redis_server.url, timeout_s=3600)
    pending = [pipeline.call("BLPOP", "nothing", 0), pipeline.call("PING")]
    await asyncio.sleep(0.05)
    redis_server.kill()
    async with asyncio.timeout(TIMEOUT_S):
        answers = await asyncio.gather(*pending, return_exceptions=True)
    assert all(isinstance(answer, RedisUnavailable) for answer in answers)


async def test_a_silent_redis_is_left_when_its_time_is_up(redis_server: Any, connect: Connect) -> None:
    pipeline = await connect(redis_server.url, COUNT_TEXT, timeout_s=1)
    sha1 = pipeline.register_script(COUNT_TEXT)
    redis_server.pause()
    async with asyncio.timeout(TIMEOUT_S):
        with pytest.raises(RedisUnavailable):
            await pipeline.script(sha1, b"1")
    assert not pipeline.is_ready
    redis_server.resume()
    await asyncio.wait_for(pipeline.wait_until_ready(), TIMEOUT_S)
    assert await pipeline.call("ECHO", "in step") == b"in step"


async def test_a_steady_flow_of_replies_does_not_hide_one_that_is_late(scripted: Scripted) -> None:
    # Of two commands one is answered, so each answer is later than the last: sooner or later that is too late.
    def answer(data: bytes) -> bytes:
        asked = data.count(b"PING")
        return b"+PONG\r\n" * (1 if asked == 1 else asked // 2)

    pipeline = await scripted(answer, timeout_s=0.2)
    futures = []
    async with asyncio.timeout(TIMEOUT_S):
        while pipeline.is_ready:
            futures += [pipeline.call("PING"), pipeline.call("PING")]
            await asyncio.sleep(0.01)
    answers = await asyncio.gather(*futures, return_exceptions=True)
    assert {type(answer) for answer in answers} == {bytes, RedisUnavailable}


async def test_a_pause_of_our_own_process_is_not_held_against_redis(redis_url: str, connect: Connect) -> None:
    pipeline = await connect(redis_url, timeout_s=0.5)
    for _ in range(2):
        reply = pipeline.call("ECHO", "a")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        time.sleep(1.5)
        assert await reply == b"a"
    assert pipeline.is_ready


async def test_until_the_hook_is_done_redis_is_the_hooks_alone(redis_url: str) -> None:
    pipeline = RedisPipeline(redis_url, timeout_s=TIMEOUT_S)
    may_finish = asyncio.Event()
    seen: list[Any] = []

    async def bring_up_to_date(given: RedisPipeline) -> None:
        seen.append((given.is_ready, await given.call("ECHO", "hook")))
        await may_finish.wait()

    pipeline.on_connect = bring_up_to_date
    pipeline.start()
    await until(lambda: bool(seen))
    assert seen == [(False, b"hook")]
    with pytest.raises(RedisUnavailable):
        pipeline.call("PING")
    may_finish.set()
    await asyncio.wait_for(pipeline.wait_until_ready(), TIMEOUT_S)
    assert await pipeline.call("PING") == b"PONG"
    await pipeline.close()


@pytest.mark.parametrize("mistake", [KeyError("a mistake of ours"), RedisUnavailable("lost"), RedisReplyError("no")])
async def test_a_hook_that_fails_is_run_again_on_another_connection(
    redis_url: str, mistake: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = RedisPipeline(redis_url, timeout_s=TIMEOUT_S)
    runs = 0

    async def fail_twice(_given: RedisPipeline) -> None:
        nonlocal runs
        runs += 1
        if runs <= 2:
            raise mistake

    pipeline.on_connect = fail_twice
    pipeline.start()
    await asyncio.wait_for(pipeline.wait_until_ready(), TIMEOUT_S)
    assert runs == 3
    assert any(record.levelno >= logging.WARNING for record in caplog.records)
    await pipeline.close()


async def test_a_redis_that_dies_under_the_hook_is_tried_again(redis_server: Any) -> None:
    pipeline = RedisPipeline(redis_server.url, timeout_s=30)
    is_in_hook = asyncio.Event()
    runs = 0

    async def wait_long(given: RedisPipeline) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            is_in_hook.set()
            await given.call("BLPOP", "nothing", 0)

    pipeline.on_connect = wait_long
    pipeline.start()
    await asyncio.wait_for(is_in_hook.wait(), TIMEOUT_S)
    redis_server.kill()
    await asyncio.sleep(0.1)
    assert not pipeline.is_ready
    redis_server.start()
    await asyncio.wait_for(pipeline.wait_until_ready(), TIMEOUT_S)
    assert runs == 2
    await pipeline.close()


async def test_it_comes_back_with_a_redis_that_was_away_for_long(redis_server: Any, connect: Connect) -> None:
    pipeline = await connect(redis_server.url)
    redis_server.kill()
    await asyncio.sleep(2)
    redis_server.start()
    await asyncio.wait_for(pipeline.wait_until_ready(), TIMEOUT_S)


async def test_user_password_and_database_of_the_url_are_used(redis_server: Any, connect: Connect) -> None:
    with redis.Redis.from_url(redis_server.url) as admin:
        admin.acl_setuser("worker", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], commands=["+@all"])
        pipeline = await connect(f"unix://worker:{PASSWORD}@{redis_server.url.removeprefix('unix://')}?db=3")
        assert await pipeline.call("ACL", "WHOAMI") == b"worker"
        await pipeline.call("SET", "here", 1)
        assert admin.exists("here") == 0
        admin.select(3)
        assert admin.exists("here") == 1


async def test_a_wrong_password_is_no_connection_and_is_not_logged(
    redis_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = f"unix://nobody:{PASSWORD}@{redis_server.url.removeprefix('unix://')}"
    pipeline, subscriber = RedisPipeline(url), RedisSubscriber(url, ["news"], lambda _channel, _body: None)
    pipeline.start()
    subscriber.start()
    await until(lambda: len([record for record in caplog.records if "WRONGPASS" in record.getMessage()]) == 2)
    assert not pipeline.is_ready
    assert not subscriber.is_ready
    assert PASSWORD not in caplog.text
    await pipeline.close()
    await subscriber.close()


async def test_closing_tells_those_who_wait_and_leaves_nothing_behind(redis_url: str, connect: Connect) -> None:
    tasks_before = asyncio.all_tasks()
    pipeline = await connect(redis_url, timeout_s=30)
    pending = pipeline.call("BLPOP", "nothing", 0)
    await asyncio.sleep(0.02)
    await pipeline.close()
    await pipeline.close()
    with pytest.raises(RedisUnavailable):
        await pending
    with pytest.raises(RedisUnavailable):
        pipeline.call("PING")
    assert asyncio.all_tasks() == tasks_before


@pytest.mark.parametrize(
    "nonsense", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+ONE\r\n+TOO MANY\r\n", b"*99999999999\r\n"]
)
async def test_what_is_not_redis_is_left(nonsense: bytes, scripted: Scripted) -> None:
    pipeline = await scripted(lambda data: b"+PONG\r\n" if b"PING" in data else nonsense)
    with contextlib.suppress(RedisUnavailable):
        assert await pipeline.call("GET", "name") == b"ONE"
    assert not pipeline.is_ready


async def test_a_server_that_became_a_replica_is_left(redis_server: Any, connect: Connect) -> None:
    pipeline = await connect(redis_server.url, COUNT_TEXT)
    sha1 = pipeline.register_script(COUNT_TEXT)
    with redis.Redis.from_url(redis_server.url) as admin:
        admin.replicaof("127.0.0.1", 1)
        for ask in (lambda: pipeline.call("SET", "a", 1), lambda: pipeline.script(sha1, b"1")):
            with pytest.raises(RedisReplyError):
                await ask()
            assert not pipeline.is_ready
            await asyncio.wait_for(pipeline.wait_until_ready(), TIMEOUT_S)
        admin.replicaof("NO", "ONE")
    assert await pipeline.script(sha1, b"1") == 1


async def test_a_message_reaches_the_subscriber(redis_url: str) -> None:
    messages: list[tuple[bytes, bytes]] = []
    subscriber = RedisSubscriber(redis_url, ["news", "weather"], lambda channel, body: messages.append((channel, body)))
    subscriber.start()
    await asyncio.wait_for(subscriber.wait_until_ready(), TIMEOUT_S)
    with redis.Redis.from_url(redis_url) as publisher:
        assert publisher.publish("news", b"\x00\r\n") == 1
        assert publisher.publish("weather", "rain") == 1
        assert publisher.publish("gossip", "…") == 0
    await until(lambda: len(messages) == 2)
    assert messages == [(b"news", b"\x00\r\n"), (b"weather", b"rain")]
    await subscriber.close()


async def test_the_subscriber_comes_back_and_says_so(redis_server: Any) -> None:
    messages: list[bytes] = []
    connects = 0

    async def count_connects() -> None:
        nonlocal connects
        connects += 1

    subscriber = RedisSubscriber(redis_server.url, ["news"], lambda _, body: messages.append(body), count_connects)
    subscriber.start()
    await until(lambda: connects == 1)
    redis_server.kill()
    await until(lambda: not subscriber.is_ready)
    redis_server.start()
    await until(lambda: subscriber.is_ready)
    assert connects == 2
    with redis.Redis.from_url(redis_server.url) as publisher:
        assert publisher.publish("news", "again") == 1
    await until(lambda: messages == [b"again"])
    await subscriber.close()


async def test_a_subscriber_stays_with_a_redis_that_takes_no_writes(redis_server: Any, tmp_path: Path) -> None:
    connects, messages = 0, []

    async def count_connects() -> None:
        nonlocal connects
        connects += 1

    gone = tmp_path / "gone"
    gone.mkdir()
    with redis.Redis.from_url(redis_server.url) as client:
        client.config_set("dir", str(gone))
        client.config_set("save", "900 1")
        gone.rmdir()
        client.bgsave()
        await until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        with pytest.raises(redis.ResponseError, match="MISCONF"):
            client.ping()
        subscriber = RedisSubscriber(
            redis_server.url, ["news"], lambda _, body: messages.append(body), count_connects, ping_every_s=0.5
        )
        subscriber.start()
        await until(lambda: connects == 1)
        before = client.info("commandstats")["cmdstat_ping"]["rejected_calls"]
        await until(lambda: client.info("commandstats")["cmdstat_ping"]["rejected_calls"] > before + 5)
        client.publish("news", "heard")
        await until(lambda: messages == [b"heard"])
    assert connects == 1
    await subscriber.close()


async def test_a_subscriber_that_hears_nothing_at_all_leaves(redis_server: Any) -> None:
    subscriber = RedisSubscriber(redis_server.url, ["news"], lambda _channel, _body: None, ping_every_s=1)
    subscriber.start()
    await asyncio.wait_for(subscriber.wait_until_ready(), TIMEOUT_S)
    await asyncio.sleep(UNANSWERED_PINGS_MAX + 1)
    assert subscriber.is_ready
    redis_server.pause()
    await until(lambda: not subscriber.is_ready)
    redis_server.resume()
    await until(lambda: subscriber.is_ready)
    await subscriber.close()


async def test_rediss_trusts_the_named_authority_and_nobody_else(
    certificate: Path, server_context: ssl.SSLContext, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while b"PING" in await reader.read(100):
            writer.write(b"+PONG\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server_context) as server:
        url = f"rediss://localhost:{server.sockets[0].getsockname()[1]}"
        stranger = RedisPipeline(url)
        stranger.start()
        await until(lambda: "CERTIFICATE_VERIFY_FAILED" in caplog.text)
        assert not stranger.is_ready
        await stranger.close()
        pipeline = await connect(f"{url}?ssl_cert_reqs=required&ssl_ca_certs={certificate}")
        assert await pipeline.call("PING") == b"PONG"
        await pipeline.close()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://redis.example", Address(host="redis.example")),
        ("redis://h:7000/2", Address(host="h", port=7000, database=2)),
        ("redis://:p%40ss@h", Address(host="h", password="p@ss")),
        ("redis://user:pass@[::1]:6380/0", Address(host="::1", port=6380, username="user", password="pass")),
        ("rediss://h?ssl_cert_reqs=required", Address(host="h", is_tls=True)),
        ("rediss://h/?ssl_ca_certs=/ca.pem&db=4", Address(host="h", is_tls=True, ca_path="/ca.pem", database=4)),
        ("unix:///run/redis.sock?db=1", Address(path="/run/redis.sock", database=1)),
        ("unix://user:pass@/run/a%20b", Address(path="/run/a b", username="user", password="pass")),
    ],
)
def test_a_url_is_read_whole(url: str, expected: Address) -> None:
    assert Address.parse(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{PASSWORD}@h",
        f"redis://:{PASSWORD}@/0",
        f"redis://:{PASSWORD}@h/one",
        f"redis://:{PASSWORD}@h:99999",
        f"rediss://:{PASSWORD}@h?ssl_cert_reqs=none",
        f"redis://:{PASSWORD}@h?socket_timeout=1",
        f"unix://:{PASSWORD}@",
        "",
    ],
)
def test_a_url_that_means_nothing_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ValueError) as refusal:
        Address.parse(url)
    assert PASSWORD not in str(refusal.value)


def test_an_address_does_not_show_its_password() -> None:
    assert PASSWORD not in repr(Address.parse(f"redis://user:{PASSWORD}@h"))
