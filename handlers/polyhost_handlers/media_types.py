"""Which formats a request's Content-Type and Accept mean. Pure, and without numpy: the server's front asks it too."""

from __future__ import annotations

import re
from collections.abc import Sequence

from polyhost_handlers.errors import UnsupportedMediaType

CSV = "text/csv"
JSON = "application/json"
JSONLINES = "application/jsonlines"
LIBSVM = "text/libsvm"
NPY = "application/x-npy"
NPZ = "application/x-npz"
RECORDIO = "application/x-recordio-protobuf"

_ALIASES = {
    "csv": CSV,
    "application/csv": CSV,
    "json": JSON,
    "jsonlines": JSONLINES,
    "application/x-jsonlines": JSONLINES,
    "application/json-lines": JSONLINES,
    "application/jsonl": JSONLINES,
    "libsvm": LIBSVM,
    "text/x-libsvm": LIBSVM,
    "application/npy": NPY,
    "npy": NPY,
    "application/npz": NPZ,
    "npz": NPZ,
    "recordio-protobuf": RECORDIO,
}


def media_type(header: str) -> str:
    """`text/x-libsvm; charset=utf8` is `text/libsvm`: parameters cut off, aliases resolved."""
    name = header.partition(";")[0].strip().lower()
    return _ALIASES.get(name, name)


def decoder_for(content_type: str, supported: Sequence[str], default: str = CSV) -> str:
    """
    Which of `supported` a Content-Type means; `default` when the client does not say.

    Raises UnsupportedMediaType.
    """
    name = media_type(content_type) or default
    # What curl and HTTP libraries add by themselves says nothing about the body.
    if name in ("application/x-www-form-urlencoded", "application/octet-stream", "text/plain"):
        name = default
    if name not in supported:
        raise UnsupportedMediaType(f"Content-Type {name} is not supported here: send {_choice(supported)}.")
    return name


def choose_accept(accept: str, supported: Sequence[str], default: str) -> str:
    """
    Which of `supported` to answer with; `default` when the client takes anything.

    Raises UnsupportedMediaType, with 415 as AWS's containers answer (HTTP would say 406).
    """
    default = media_type(default)
    for candidate in accept.split(","):
        name = media_type(candidate)
        if name in ("", "*/*", f"{default.partition('/')[0]}/*"):
            name = default  # which the container's environment may have set to anything
        if name in supported:
            return name
    raise UnsupportedMediaType(f"Accept {accept or default} is not supported here: ask for {_choice(supported)}.")


def header_of(content_type: str) -> bool | None:
    """What `text/csv; header=present` (or `absent`) says of the first line; None where it says nothing."""
    said = re.search(r";\s*header\s*=\s*(present|absent)\b", content_type.lower())
    return said[1] == "present" if said else None


def _choice(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
