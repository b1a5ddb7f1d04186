"""Log lines of one form, as text or as one JSON object a line, on standard output."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator

TEXT_FORMAT = "%(asctime)s [%(levelname)-5s] %(name)s - %(message)s"


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message = f"{message}\n{self.formatException(record.exc_info)}"
        return _json_line(record.created, record.levelname, record.name, message)


def line_as_json(line: str) -> str:
    """A line of a process that does not know our format: an object stays, anything else becomes one."""
    return line if line.startswith('{"time":') else _json_line(time.time(), "INFO", "stdout", line)


def _json_line(moment_secs: float, level: str, logger: str, message: str) -> str:
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment_secs))
    millis = int(moment_secs * 1000) % 1000
    return json.dumps({"time": f"{moment}.{millis:03d}Z", "level": level, "logger": logger, "message": message})


def formatter_for(log_format: str) -> logging.Formatter:
    return JsonFormatter() if log_format == "json" else logging.Formatter(TEXT_FORMAT)


def configure(log_format: str) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter_for(log_format))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # it tells of starts and stops, as we do


@contextlib.contextmanager
def every_line_as_json() -> Iterator[None]:
    """
    What this process and its children write, C libraries and customers' scripts too, becomes JSON on standard output.

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
