"""Logs of either side: static event names plus fields, one line an event, and no secrets.

Call `get_logger(__name__)` in a module and log `log.info("stream_opened", node_id=..., epoch=...)`: the
event is a fixed word to search for, everything that varies is a field. `configure` is called once, by a
program's `__main__`; before that (in unit tests) structlog's own defaults apply. Records of the standard
library's logging (grpc, SQLAlchemy, Alembic, asyncio) come out the same way.

Modules take `get_logger` from here rather than importing structlog: see the import below.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, TextIO

from fleet.redaction import escape_controls, redact

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger, Processor

# structlog imports rich for its tracebacks whenever rich is installed: 4 MiB in every node, of which none
# is used here, and a traceback style that prints local variables, keys and tokens among them.
_HIDE_RICH = "rich" not in sys.modules
if _HIDE_RICH:
    sys.modules["rich"] = None  # type: ignore[assignment]
try:
    import structlog
finally:
    if _HIDE_RICH:
        del sys.modules["rich"]

LEVELS = ("debug", "info", "warning", "error")
"""Level names a setting may hold."""

# SQLAlchemy's engine logs statements with their parameters at INFO: rows hold hashes, sealed keys and
# operators' arguments.
_NEVER_BELOW_WARNING = ("sqlalchemy.engine", "sqlalchemy.pool")


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger whose events carry `logger=name`. Cheap, and safe at import time, before `configure`."""
    logger: FilteringBoundLogger = structlog.get_logger(name)
    return logger


def configure(
    stream: TextIO,
    *,
    level: str = "info",
    fields: Mapping[str, str] | None = None,
    pretty: bool | None = None,
) -> None:
    """Send every log record of the process to `stream`. Calling again replaces what was configured.

    Args:
        stream: standard error, normally.
        level: one of `LEVELS`.
        fields: constant fields of each event, such as the component's name.
        pretty: aligned columns for a person, short ones on a terminal; JSON lines otherwise; None decides by whether
            `stream` is a terminal.

    Raises:
        ValueError: `level` is none of `LEVELS`.
    """
    if level not in LEVELS:
        raise ValueError(f"unknown log level {level!r}: choose one of {', '.join(LEVELS)}")
    number = logging.getLevelNamesMapping()[level.upper()]
    pretty = stream.isatty() if pretty is None else pretty
    constant = dict(fields or {})

    def add_constant_fields(
        _logger: object, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        return {**constant, **event}

    common: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        add_constant_fields,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        # Plain text: the styles that show local variables show secrets.
        structlog.processors.ExceptionRenderer(),
    ]
    structlog.configure(
        processors=[*common, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *common],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                redact,
                *_renderers(stream, pretty=pretty, constant=constant),
            ],
        )
    )
    _install(handler, number)


def _renderers(stream: TextIO, *, pretty: bool, constant: Mapping[str, str]) -> list[Processor]:
    if not pretty:
        return [structlog.processors.JSONRenderer()]
    # A terminal obeys control characters; a stranger's text must not rewrite what an operator sees. JSON
    # escapes them by itself.
    console = structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=24
    )

    def leave_out(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """Who sits at the terminal knows the program and the day, and has little room."""
        for name in ("logger", *constant):
            if event.get(name) == constant.get(name, event.get(name)):
                event.pop(name, None)
        moment = datetime.fromisoformat(event["timestamp"]).astimezone()
        return {**event, "timestamp": moment.strftime("%H:%M:%S")}

    return [escape_controls, *([leave_out] if stream.isatty() else []), console]


def _install(handler: logging.Handler, level: int) -> None:
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for name in _NEVER_BELOW_WARNING:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    logging.captureWarnings(True)
