"""
Every error that a handler answers with, and its HTTP status. docs/troubleshooting.md has `advice`.

* HandlerError             500  the base; its text is one sentence that says what to change
  x NoContent              204  nothing was sent, so there is nothing to answer (as AWS's XGBoost does)
  x BadInput               400  parsed, but this model cannot take it
  x Unparseable            400  not what its Content-Type says (415 from the XGBoost handler, as AWS's)
  x UnsupportedMediaType   415  a Content-Type or Accept that this handler does not know
  x LoadFailed             500  the artifact cannot be loaded

`MemoryError` is not in this tree: it leaves the handler as it is, and the server answers 507.
"""

from __future__ import annotations

import contextlib
import errno
import re
import sys
from collections.abc import Iterator


class HandlerError(Exception):
    status = 500
    type = "InternalServerException"

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        if status is not None:
            self.status = status


class NoContent(HandlerError):
    status = 204
    advice = "Nothing was sent, so there is nothing to answer. Send a body."


class BadInput(HandlerError):
    status = 400
    type = "BadRequestException"


class Unparseable(BadInput):
    pass


class UnsupportedMediaType(HandlerError):
    status = 415
    type = "UnsupportedMediaTypeException"
    advice = "The handler does not know this Content-Type or Accept. The text lists those that it knows."


class LoadFailed(HandlerError):
    pass


# How libraries of C and C++ say "no memory" through exceptions of their own. Whole phrases, where they stand in
# such a text: a message may also quote what a client sent, and a client must not be able to say "evict".
_OUT_OF_MEMORY = re.compile(
    r"std::bad_alloc\s*$|^bad allocation\s*$"  # XGBoost, onnxruntime, LightGBM, anything else
    r"|Failed to allocate (CPU |GPU )?Memory\s*$"  # MXNet
    r"|Failed to allocate memory for requested buffer of size \d+\s*$"  # onnxruntime
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory"  # PyTorch
    r"|^(CUDA|HIP|XPU|MPS backend) out of memory|^OOM when allocating"  # PyTorch, TensorFlow
    r"|[Cc]annot allocate memory\W*$",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is some library's way to say that memory is short."""
    if isinstance(error, HandlerError):
        return False
    if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # Python and numpy raise MemoryError itself; their ValueError or KeyError quotes what it was given.
    if type(error).__module__ == "builtins" and not isinstance(error, RuntimeError):
        return False
    return isinstance(error, Exception) and _OUT_OF_MEMORY.search(str(error)) is not None


def is_memory_short(need_bytes: int) -> bool:
    """Whether so much is not to be had. The pages are asked for, not touched."""
    try:
        bytes(need_bytes)
    except (MemoryError, OverflowError):
        return True
    return False


@contextlib.contextmanager
def memory_errors_translated() -> Iterator[None]:
    """Raise `MemoryError` for whatever the block raises when memory is short; all else passes unchanged."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise


@contextlib.contextmanager
def load_errors_named(what: str, artifact_bytes: int) -> Iterator[None]:
    """
    Whatever a broken artifact makes a library raise becomes LoadFailed, in one sentence that begins with `what`.

    A damaged file also makes libraries ask for absurd amounts of memory. Hardly an artifact needs 64 bytes for a
    byte of its own: where so much can be had, memory is not short and the file is broken.
    """
    try:
        yield
    except LoadFailed:
        raise
    except Exception as error:
        if is_out_of_memory(error) and is_memory_short(artifact_bytes * 64 + 16 * 1024**2):
            raise MemoryError(str(error)) from error
        reason = sentence_of(error)
        # Without its type, "3" or "index out of range" says little.
        if isinstance(error, (LookupError, TypeError, AttributeError)):
            reason = f"{type(error).__name__}: {reason}"
        raise LoadFailed(f"Unable to load model: {what}: {reason}") from error


# Pickles name a class by its module, and the one of a program that was run is __main__.
_NOT_IN_MODULE = re.compile(r"Can't get attribute '([^']+)' on (<module .*>)$")
# After these comes the place, Python's or a TorchScript program's, and then what went wrong.
_TRACES = ("Traceback (most recent call last)", "The following operation failed in the TorchScript interpreter")
_PLACE = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")


def sentence_of(error: BaseException) -> str:
    """What a library says, in one line: without its stack trace and the place in its source."""
    lacks = _NOT_IN_MODULE.match(str(error)) if isinstance(error, AttributeError) else None
    if lacks is not None and lacks[2] == repr(sys.modules["__main__"]):
        name = lacks[1]
        return (
            f"{name} was pickled by the program that defined it (as __main__.{name}): define {name} in the archive's "
            "code/inference.py, or import it there"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # XGBoost's sentence comes first, before its frames; MXNet's after them, or after a list of arguments.
    lines = [line for line in lines if line.startswith("MXNetError: ")] or lines
    if not lines:
        return type(error).__name__
    return _PLACE.sub("", lines[-1] if lines[0].startswith(_TRACES) else lines[0])
