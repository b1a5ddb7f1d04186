"""
Every error that a handler answers with, and its HTTP status.

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


class BadInput(HandlerError):
    status = 400
    type = "BadRequestException"


class Unparseable(BadInput):
    pass


class UnsupportedMediaType(HandlerError):
    status = 415
    type = "UnsupportedMediaTypeException"


class LoadFailed(HandlerError):
    pass


# How C and C++ libraries say "no memory" through Python exceptions of their own.
_OUT_OF_MEMORY = re.compile(
    r"std::bad_alloc|bad allocation|Failed to allocate \S* ?(CPU )?[Mm]emory|[Cc]annot allocate memory"
    r"|DefaultCPUAllocator: (can't|not enough memory)|(CUDA|hip|XPU) out of memory|[Oo]ut of memory"
    r"|Unable to allocate \S+ \S+ for an array",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is some library's way to say that memory is short."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, Exception) and _OUT_OF_MEMORY.search(str(error)) is not None


@contextlib.contextmanager
def memory_errors_translated() -> Iterator[None]:
    """Raise `MemoryError` for whatever the block raises when memory is short; all else passes unchanged."""
    try:
        yield
    except MemoryError:
        raise
    except HandlerError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        raise
