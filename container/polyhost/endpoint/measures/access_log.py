"""The access log: a line for each answered request. It is on every request's way, and puts lines together by itself."""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable

from polyhost.endpoint.events import CallAnswered
from polyhost.log import json_moment, text_moment

_PLAIN = re.compile(r"[\w./:@+,()~$-]+", re.ASCII)


def access_log(log_format: str, write: Callable[[str], None]) -> Callable[[CallAnswered], None]:
    """The subscriber that writes a call's line in the form of the log."""
    line_of = json_line if log_format == "json" else text_line
    return lambda call: write(line_of(call, time.time()))


def text_line(call: CallAnswered, moment_secs: float) -> str:
    """Names are a client's: one that is not plain is quoted, with escapes."""
    request_id, endpoint, variant, target, status, bytes_in, bytes_out, total_secs, model_secs, was_hit, *_ = call
    return (
        f"{text_moment(moment_secs)} [INFO ] polyhost.access - {_quoted(request_id)} InvokeEndpoint "
        f"endpoint={_quoted_once(endpoint)} variant={_quoted_once(variant)} target={_quoted_once(target)} "
        f"status={status} bytes_in={bytes_in} bytes_out={bytes_out} total_ms={total_secs * 1000:.3f} "
        f"model_ms={model_secs * 1000:.3f} loaded={_HIT_OR_MISS[was_hit]}"
    )


def json_line(call: CallAnswered, moment_secs: float) -> str:
    """Each of these is a member."""
    request_id, endpoint, variant, target, status, bytes_in, bytes_out, total_secs, model_secs, was_hit, *_ = call
    return (
        f'{{"time": "{json_moment(moment_secs)}", "level": "INFO", "logger": "polyhost.access", '
        f'"message": "InvokeEndpoint", "request_id": {json.dumps(request_id)}, "endpoint": {_json_once(endpoint)}, '
        f'"variant": {_json_once(variant)}, "target": {_json_once(target)}, "status": {status}, '
        f'"bytes_in": {bytes_in}, "bytes_out": {bytes_out}, "total_ms": {round(total_secs * 1000, 3)}, '
        f'"model_ms": {round(model_secs * 1000, 3)}, "loaded": {_JSON_HIT_OR_MISS[was_hit]}}}'
    )


_HIT_OR_MISS = {None: "-", True: "hit", False: "miss"}
_JSON_HIT_OR_MISS = {None: "null", True: '"hit"', False: '"miss"'}


def _quoted(name: str) -> str:
    if not name:
        return "-"
    return name if _PLAIN.fullmatch(name) and name != "-" else json.dumps(name)


# For names that come again and again; a client may send 1,024 characters.
_quoted_once = functools.lru_cache(maxsize=1024)(_quoted)
_json_once = functools.lru_cache(maxsize=1024)(json.dumps)
