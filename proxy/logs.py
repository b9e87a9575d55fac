"""The data path's log: one JSON object a line on stderr, without local variables, secrets scrubbed at the sink."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_SECRET = re.compile(r"\b(?:tg|tgapi|sk|pk|gsk|xai)-[A-Za-z0-9_\-]{8,}|(?<=[Bb]earer )\S+")
REDACTED = "[redacted]"


def configure() -> None:
    processors: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # The plain traceback: the one with local variables would show keys and prompts.
        structlog.processors.format_exc_info,
        _scrub,
    ]
    structlog.configure(
        processors=[*processors, structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=processors,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)


def scrub(text: str) -> str:
    return _SECRET.sub(REDACTED, text)


def _scrub(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {name: scrub(value) if isinstance(value, str) else value for name, value in event.items()}
