"""Redis is down, paused, slow, out of reach or full, or its connections break: the declared answer comes at once, and no call goes out
without a hold."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import redis

from controlplane import embedded
from proxy.snapshot import Budget
from tests.chaos.faults import Fault, FaultProxy
from tests.chaos.load import Answer, Load, ask, asked_apart, chat
from tests.chaos.rig import CannotRun, Measured, Options, Rig, Server, alone, waited
from tests.chaos.witness import Witness
from tests.stack import Stack, wait_until

ANSWER_S = 0.25
RECOVERY_S = 15.0
HOLDS_END_S = 10.0
ASKED_AT_ONCE = 10
DISK_MB = 24
# Bytes of answers on one connection: some dozens of calls.
TORN_AFTER = 4_000


class Trouble(NamedTuple):
    """`mend` leaves nothing to be done by hand but what caused it. One that `lets_pass` some calls may have them served."""

    cause: Callable[[], object]
    mend: Callable[[], object]
    lets_pass: bool = False


def run(rig: Rig, options: Options, *, kind: str) -> Measured:
    rounds = options.kills_of(short=1, full=10)
    directory = rig.directory()
    if kind == "full":
        rig.small_disk(directory / "redis", DISK_MB)
    server = rig.redis(directory)
    assert isinstance(server.server, embedded.Redis)
    front = rig.fault_proxy(str(server.server.socket_path))
    stack = rig.stack(2, redis_url=f"redis://127.0.0.1:{front.port}", control_url=server.url)
    stack.wait_for_version(
        stack.control.publish(budgets=(Budget(budget_id="all", name="all", window="total", amount=10**15),))
    )
    troubles = _troubles(kind, server, front)
    secret = stack.control.issue_key()
    slowest_s, wrong, slowest_recovery_s = 0.0, 0, 0.0
    progress = rig.progress("round", rounds * len(troubles))
    for number, trouble in enumerate(troubles * rounds):
        progress.reached(number)
        with (
            asked_apart(_ask_often, stack.proxy.port, secret) as ask_often,
            Load(stack.proxy.port, secret) as load,
        ):
            wait_until(lambda: load.answered > 10, "answers")
            struck_before = front.struck
            trouble.cause()
            if kind in RELAYED:
                wait_until(lambda: front.struck > struck_before, "the fault to strike")  # noqa: B023
            answers = ask_often()
            trouble.mend()
            took_s = waited(lambda: _is_served(stack, secret), RECOVERY_S)
        slowest_recovery_s = max(slowest_recovery_s, RECOVERY_S if took_s is None else took_s)
        wrong += sum(not (_is_declared(answer) or (trouble.lets_pass and answer.status == 200)) for answer in answers)
        slowest_s = max([slowest_s, *(answer.elapsed_s for answer in answers)])
        waited(lambda: stack.control.holds() == 0, HOLDS_END_S)
        if took_s is None:
            break
    unheld, stranded = _without_hold(stack), stack.control.holds()
    is_exact = not (wrong or unheld or stranded) and slowest_recovery_s < RECOVERY_S
    return Measured(
        is_held=is_exact and slowest_s < ANSWER_S,
        is_only_late=is_exact and slowest_s >= ANSWER_S,
        figure=f"answered in {slowest_s * 1000:.0f} ms, {wrong} otherwise than declared; {unheld} calls without a hold; "
        f"{stranded} holds stranded; "
        f"served again after {slowest_recovery_s:.1f} s",
        counts=f"{number + 1} times, {(number + 1) * ASKED_AT_ONCE * 3} calls meanwhile",
    )


def _troubles(kind: str, server: Server, front: FaultProxy) -> list[Trouble]:
    match kind:
        case "down":
            return [Trouble(server.kill, server.start)]
        case "paused":
            return [Trouble(server.pause, server.resume)]
        case "slow":
            return [Trouble(partial(front.set, Fault(latency_s=1.0)), front.clear)]
        case "unreachable":
            return [Trouble(partial(front.set, Fault(is_black_hole=True)), front.clear)]
        case "broken":
            torn = Fault(reset_after=TORN_AFTER), Fault(half_close_after=TORN_AFTER), Fault(slice_bytes=16)
            return [
                Trouble(partial(_refuse, front), front.clear),
                *(Trouble(partial(front.set, fault), front.clear, lets_pass=True) for fault in torn),
            ]
        case "full":
            ballast = server.directory / "ballast"
            return [Trouble(partial(_fill, ballast, server), ballast.unlink)]
        case _:
            raise CannotRun(f"there is no trouble called {kind}")


def _refuse(front: FaultProxy) -> None:
    front.set(Fault(is_refusing=True))
    front.reset_all()


def _fill(ballast: Path, server: Server) -> None:
    """To the last byte; then Redis finds out with its next write."""
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    with redis.Redis.from_url(server.url) as client:
        wait_until(lambda: _refuses_writes(client), "a Redis that is full")


def _refuses_writes(client: redis.Redis) -> bool:
    try:
        client.set("ballast", b"\0" * 4096)
    except redis.ResponseError:
        return True
    return False


async def _ask_often(port: int, secret: str) -> list[Answer]:
    answers: list[Answer] = []
    for _ in range(3):
        answers += await asyncio.gather(*(ask(port, secret, chat(max_tokens=8)) for _ in range(ASKED_AT_ONCE)))
        await asyncio.sleep(0.3)
    return answers


def _is_declared(answer: Answer) -> bool:
    return answer.status == 503 and "retry-after" in answer.headers


def _is_served(stack: Stack, secret: str) -> bool:
    return asyncio.run(ask(stack.proxy.port, secret, chat(max_tokens=8))).status == 200


def _without_hold(stack: Stack) -> int:
    """Calls that the provider got and no event tells of, or tells that nothing was held."""
    held = {event["attempt_id"] for event in stack.control.events() if event.get("held_nanos", 0) > 0}
    return len(Witness(stack.simulator.journal).look().calls.keys() - held)


KINDS = {
    "down": "is killed and comes back",
    "paused": "is paused",
    "slow": "takes a second for each answer",
    "unreachable": "swallows everything",
    "broken": "refuses connections, resets them, half closes them, and sends in small pieces",
    "full": "has a full disk",
}
RELAYED = ("slow", "unreachable", "broken")
PROMISES = tuple(
    alone(
        f"redis_{kind}",
        f"Redis {text}: the declared answer, and no call without a hold",
        "503 with Retry-After in < 250 ms; 0 without a hold, 0 stranded; recovers by itself",
        partial(run, kind=kind),
    )
    for kind, text in KINDS.items()
)
