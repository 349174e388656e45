"""JSON lines on stderr: a fixed short message, values as fields.

Promise 7 is held here as far as it can be: an error of Postgres is printed without its DETAIL,
which may quote a row, and no traceback shows values. Nobody else formats a log line.
"""

import logging
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import asyncpg
import orjson

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """Format a record as one JSON object on one line, with `fields` that each line has."""

    def __init__(self, fields: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._fields = dict(fields or {})

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._fields,
        }
        line |= {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = describe(record.exc_info[1])
        return orjson.dumps(line, default=str, option=orjson.OPT_UTC_Z).decode()


def describe(error: BaseException) -> list[str]:
    """Return an error and its causes, the outermost first, with the places of each: no values."""
    lines: list[str] = []
    current: BaseException | None = error
    while current is not None and len(lines) < 50:
        lines.append(f"{type(current).__name__}: {brief(current)}")
        lines += [
            f"  {frame.filename}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(current.__traceback__)
        ]
        current = current.__cause__ or (
            None if current.__suppress_context__ else current.__context__
        )
    return lines


def brief(error: BaseException) -> str:
    """Return an error's own sentence; for one of Postgres never its DETAIL or its values."""
    if isinstance(error, asyncpg.PostgresError):
        return f"SQLSTATE {error.sqlstate}"
    if isinstance(error, asyncpg.DataError | ValueError | TypeError | KeyError):
        return "(values are not logged)"
    return str(error)


def configure(level: str, *, worker: int | None = None) -> None:
    """Send every logger's lines to stderr as JSON; uvicorn's own access log is off.

    `worker`: its number, in each line of one of several processes that share the port.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(None if worker is None else {"worker": worker}))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = name != "uvicorn.access"
