"""Logs: events with fields, as JSON or for a terminal, on standard error, without secrets."""

import logging
import re
import sys
from typing import Literal, cast

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

_SECRET_FIELD = re.compile(r"(?i)secret|password|passwd|token|authorization|cookie|private|ticket|database_url")
_SECRET_VALUE = re.compile(
    r"(?P<key>\b[a-z]{2,4}_[0-9a-z]{26})\.[A-Za-z0-9_-]{20,}"  # API keys and join tokens: id.secret
    r"|(?P<jwt>\beyJ[A-Za-z0-9_-]{5,}\.)[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"
    r"|(?P<url>://[^:/@\s]*:)[^@/\s]+(?=@)"
)
REMOVED = "[removed]"


def configure_logs(*, log_format: Literal["console", "json"], level: str) -> None:
    """Sets up structlog, and leads the standard library's loggers (uvicorn, alembic) into it. Once per process."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info if log_format == "json" else _keep,
        remove_secrets,
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_exception_without_values)
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared[:1], structlog.stdlib.add_logger_name, *shared[1:]],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
    # One line per request comes from our own middleware, without the query, which may hold a ticket.
    logging.getLogger("uvicorn.access").disabled = True


def remove_secrets(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replaces what a field's name or a value's form gives away as a secret: a net below the rule to log none."""
    for name, value in event.items():
        if _SECRET_FIELD.search(name) and isinstance(value, (str, bytes)):
            event[name] = REMOVED
        elif isinstance(value, str):
            event[name] = without_secrets(value)
    return event


def without_secrets(text: str) -> str:
    """`text` with API keys, tokens and passwords in URLs removed."""
    return _SECRET_VALUE.sub(lambda match: (match["key"] or match["jwt"] or match["url"] or "") + REMOVED, text)


def _keep(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return event


def _exception_without_values(out: object, exception: structlog.typing.ExcInfo) -> None:
    """A plain traceback: the richer ones show local variables, which may be secrets."""
    from io import StringIO
    from typing import TextIO

    text = StringIO()
    structlog.dev.plain_traceback(text, exception)
    cast(TextIO, out).write(without_secrets(text.getvalue()))
