"""Asking Redis from the data path: every way in which it can fail to answer becomes `Unavailable`."""

import asyncio
from typing import Any

from budgets.gate import Script
from proxy.errors import Unavailable
from proxy.wire.redis import RedisError, RedisPipeline


async def ask(redis: RedisPipeline, script: Script, argument: bytes) -> list[Any]:
    """The answer of one of the gate's scripts. Raises `Unavailable`; it may have been applied all the same."""
    try:
        return await send(redis, script, argument)
    except RedisError as error:
        raise Unavailable("the gate did not answer") from error


async def call(redis: RedisPipeline, *command: bytes | str | int) -> Any:
    """The answer of one command. Raises `Unavailable`."""
    try:
        return await redis.call(*command)
    except RedisError as error:
        raise Unavailable("Redis did not answer") from error


def send(redis: RedisPipeline, script: Script, argument: bytes) -> "asyncio.Future[list[Any]]":
    """As `ask`, without waiting. Raises `Unavailable` when it cannot even be sent."""
    try:
        answer: asyncio.Future[list[Any]] = redis.script(script.sha1, argument)
    except RedisError as error:
        raise Unavailable("the gate cannot be reached") from error
    return answer
