"""Log lines of one form, as text or as one JSON object a line, on standard output."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from polyhost.line_writer import LineWriter

TEXT_FORMAT = "%(asctime)s [%(levelname)-5s] %(name)s - %(message)s"
# What would end a line, move a terminal's cursor, or cannot be written at all.
_NOT_IN_A_LINE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# How long the end of a server waits for a reader of its log.
_FLUSHED_SECS = 2.0
# The member that makes CloudWatch take metrics from a line.
METRICS_MEMBER = "_aws"


class Structured:
    """What is logged as `logger.info(structured)`: a text to people, members of its own in the JSON form."""

    def __str__(self) -> str:
        raise NotImplementedError

    def members(self) -> dict[str, Any]:
        raise NotImplementedError


class TextFormatter(logging.Formatter):
    """One line a message, whatever clients have put into names; only a traceback has more, and they are indented."""

    def __init__(self) -> None:
        super().__init__(TEXT_FORMAT)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802 - logging's
        return text_moment(record.created)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"  {printable(line)}" for line in lines)


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.msg, Structured):
            return _json_line(record.created, record.levelname, record.name, record.msg.members())
        message = record.getMessage()
        if record.exc_info:
            message = f"{message}\n{self.formatException(record.exc_info)}"
        return _json_line(record.created, record.levelname, record.name, {"message": message})


def text_moment(moment_secs: float) -> str:
    return f"{_local_second(int(moment_secs))},{int(moment_secs * 1000) % 1000:03d}"


def json_moment(moment_secs: float) -> str:
    return f"{_utc_second(int(moment_secs))}.{int(moment_secs * 1000) % 1000:03d}Z"


@functools.lru_cache(maxsize=2)
def _local_second(moment_secs: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment_secs))


@functools.lru_cache(maxsize=2)
def _utc_second(moment_secs: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment_secs))


def printable(text: str) -> str:
    """With escapes for what could forge a line or cannot be printed."""
    if text.isprintable():
        return text
    return _NOT_IN_A_LINE.sub(lambda match: ascii(match[0])[1:-1], text)


def line_as_json(line: str) -> str:
    """A line of a process that does not know our format: an object stays, anything else becomes one."""
    if line.startswith('{"time":') and not _forges_metrics(line):
        return line
    return _json_line(time.time(), "INFO", "stdout", {"message": line})


def _forges_metrics(line: str) -> bool:
    """
    Whether CloudWatch would take metrics from it.

    A script may print what a client has sent. Its lines are lines of the log; its numbers are not our metrics.
    """
    if METRICS_MEMBER not in line and "\\u00" not in line:  # it may be written with escapes
        return False
    try:
        return METRICS_MEMBER in json.loads(line)
    except (ValueError, RecursionError):
        return True


def _json_line(moment_secs: float, level: str, logger: str, members: Mapping[str, Any]) -> str:
    return json.dumps({"time": json_moment(moment_secs), "level": level, "logger": logger, **members})


def formatter_for(log_format: str) -> logging.Formatter:
    return JsonFormatter() if log_format == "json" else TextFormatter()


def configure(log_format: str) -> None:
    """Configure the log of a process whose output our server reads."""
    _configure(logging.StreamHandler(sys.stdout), log_format)


def configure_server(log_format: str) -> Callable[[str], None]:
    """
    Configure the log of a server. A thread writes it, so that the server goes on when nobody reads.

    Returns what writes a line that has its form already. To be called before `every_line_as_json`.
    """
    handler = _Aside(_standard_output(), formatter_for(log_format))
    _configure(handler, log_format)
    return handler.lines.write


def _standard_output() -> int:
    try:
        return os.dup(1)
    except OSError:  # whoever has started us has closed it
        return os.open(os.devnull, os.O_WRONLY)


def _configure(handler: logging.Handler, log_format: str) -> None:
    handler.setFormatter(formatter_for(log_format))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)


class _Aside(logging.Handler):
    """`logging` flushes it when the process ends."""

    def __init__(self, descriptor: int, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines = LineWriter(descriptor, self._dropped_line)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.lines.write(self.format(record))
        except Exception:  # noqa: BLE001 - as all handlers: what is logged must not fail
            self.handleError(record)

    def flush(self) -> None:
        self.lines.flush(_FLUSHED_SECS)

    def _dropped_line(self, count: int) -> str:
        words = "%d lines of the log were dropped: whoever reads standard output did not keep up"
        return self.format(logging.LogRecord("polyhost.log", logging.WARNING, "", 0, words, (count,), None))


@contextlib.contextmanager
def every_line_as_json() -> Iterator[None]:
    """
    What this process and its children print, C libraries and customers' scripts too, becomes JSON on standard output.

    The server's own log is not printed: it is written to where standard output was before.

    Ends when the last of them has ended.
    """
    ours = os.dup(1)
    reader, writer = os.pipe()
    for descriptor in (1, 2):
        os.dup2(writer, descriptor)
    os.close(writer)
    pump = threading.Thread(target=_pump_lines, args=(reader, ours))
    pump.start()
    try:
        yield
    finally:
        sys.stdout.flush()
        for descriptor in (1, 2):
            os.dup2(ours, descriptor)
        pump.join()
        os.close(ours)


def _pump_lines(reader: int, to: int) -> None:
    with open(reader, "rb") as lines:
        for line in lines:
            text = line_as_json(line.decode("utf-8", "replace").rstrip("\n"))
            os.write(to, text.encode() + b"\n")


class LineLogger:
    """A text stream whose lines become log records: for code that prints."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                self._logger.info("%s", line.rstrip())
        return len(text)

    def flush(self) -> None: ...
