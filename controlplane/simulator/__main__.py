"""`python -m controlplane.simulator`: options, the listening socket, the end. Also what the Django command calls."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvloop

from controlplane.simulator.directives import BadDirective, Settings, parse
from controlplane.simulator.journal import Journal, JournalFailed, Started, Stopped
from controlplane.simulator.server import Connection
from controlplane.simulator.simulator import Simulator

BACKLOG = 4096
_SHORTCUTS = ("latency_ms", "tokens_per_second", "output_tokens", "error_rate")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=9090, help="0 takes any free one (%(default)s)")
    parser.add_argument(
        "--journal", type=Path, metavar="PATH", help="append what happens to this file; without it, nowhere"
    )
    parser.add_argument("--seed", type=int, help="which requests fail under error_rate is the same in every run")
    parser.add_argument(
        "--simulate", default="", metavar="DIRECTIVES", help="for every request: error=529,error_rate=0.1"
    )
    for name in _SHORTCUTS:
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="N", help=f"short for --simulate {name}=N")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m controlplane.simulator", description="A stand-in for AI providers."
    )
    add_arguments(parser)
    return run(parser.parse_args(argv))


def run(options: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM. Answers the exit code."""
    shortcuts = {name: getattr(options, name) for name in _SHORTCUTS if getattr(options, name) is not None}
    try:
        simulator = Simulator(
            Settings(parse(options.simulate) | shortcuts), Journal(options.journal), seed=options.seed
        )
        uvloop.run(_serve(simulator, options.host, options.port))
    except (BadDirective, JournalFailed, OSError) as error:
        print(f"simulator: {error}", file=sys.stderr)  # noqa: T201 (its user interface)
        return 1
    return 0


async def _serve(simulator: Simulator, host: str, port: int) -> None:
    """Raises `OSError` when the address is taken, `JournalFailed` when the journal fails later."""
    loop = asyncio.get_running_loop()
    end: asyncio.Future[None] = loop.create_future()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _resolve, end, None)
    loop.set_exception_handler(lambda _, context: _on_error(loop, end, context))
    server = await loop.create_server(lambda: Connection(simulator, loop), host, port, backlog=BACKLOG)
    simulator.journal.write(Started(pid=os.getpid(), settings=simulator.settings.as_directives()))
    address, bound_port = server.sockets[0].getsockname()[:2]
    authority = f"[{address}]:{bound_port}" if ":" in address else f"{address}:{bound_port}"
    print(f"listening on http://{authority}", flush=True)  # noqa: T201 (whoever started it waits for this line)
    try:
        await end
    finally:
        server.close()
        for connection in list(simulator.connections):
            connection.stop()
    simulator.journal.write(Stopped())


def _on_error(loop: asyncio.AbstractEventLoop, end: asyncio.Future[None], context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, JournalFailed):
        _resolve(end, error)
    else:
        loop.default_exception_handler(context)


def _resolve(end: asyncio.Future[None], error: Exception | None) -> None:
    if end.done():
        return
    if error is None:
        end.set_result(None)
    else:
        end.set_exception(error)


if __name__ == "__main__":
    sys.exit(main())
