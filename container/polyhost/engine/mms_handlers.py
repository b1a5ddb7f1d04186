"""
Handlers of MMS's contract, as the workers of both engines find, start and call them.

With MMS's own Context and Service around them; where MMS itself is wrong, ours are right: what `initialize` of a
class raises is a failed load, and headers are found by a name in any case. Imported only inside workers, of every
Python environment: it needs MMS, the handlers' package and the standard library.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from polyhost_handlers.errors import HandlerError, LoadFailed, memory_errors_translated


def loaded_service(name: str, folder: str, handler: str, batch_size: int, gpu: int | None = None) -> Any:
    """
    An mms.service.Service whose handler has loaded the model.

    Raises LoadFailed, MemoryError, or whatever a customer's code raises.
    """
    import mms.service
    from mms.metrics.metrics_store import MetricsStore

    mms.service.RequestProcessor = _any_case_request_processor()
    manifest_file = Path(folder, "MAR-INF", "MANIFEST.json")
    manifest = json.loads(manifest_file.read_bytes()) if manifest_file.is_file() else None
    entry_point = _entry_point(handler, folder)
    service = mms.service.Service(name, folder, manifest, entry_point.handle, gpu, batch_size)
    service.context.metrics = MetricsStore({}, name)
    with memory_errors_translated():
        entry_point.initialize(service.context)
    return service


def load_failure(error: BaseException) -> tuple[int, str]:
    """A failed load as the client will see it: status and the handler's sentence, never a traceback."""
    if isinstance(error, MemoryError):
        return 507, str(error) or "Out of memory while loading the model."
    if isinstance(error, HandlerError):
        return 500, " ".join(error.message.split())
    if isinstance(error, SystemExit):
        return 500, f"Unable to load model: its code called exit({error.code})."
    text = " ".join(str(error).split())
    return 500, f"Unable to load model: {type(error).__name__}: {text}"


def module_name(handler: str) -> str:
    """The module of `module:function`, `module` or `/dir/file.py:function`."""
    return os.path.basename(handler.partition(":")[0]).removesuffix(".py")


@dataclass(frozen=True)
class _EntryPoint:
    handle: Callable[..., Any]
    initialize: Callable[[Any], Any]


def _entry_point(handler: str, folder: str) -> _EntryPoint:
    """The function of the module, or its one class."""
    path, _, function_name = handler.partition(":")
    if path.startswith("polyhost_handlers."):
        sys.path.append(folder)  # nothing in an archive may shadow what our handlers import
    else:
        sys.path[:0] = [entry for entry in (os.path.dirname(path), folder) if entry]
    module = importlib.import_module(module_name(handler))
    function = getattr(module, function_name or "handle", None)
    if function is not None:
        return _EntryPoint(function, lambda context: function(None, context))
    classes = _own_classes(module)
    if len(classes) != 1:
        found = ", ".join(one.__name__ for one in classes) or "no class"
        raise LoadFailed(f"Unable to load model: {path} has no function handle and not one class, but {found}.")
    service = classes[0]()
    return _EntryPoint(service.handle, getattr(service, "initialize", lambda _: None))


def _own_classes(module: ModuleType) -> list[type]:
    return [one for _, one in inspect.getmembers(module, inspect.isclass) if one.__module__ == module.__name__]


class _AnyCase(dict[str, Any]):
    """
    Headers found by a name in any case, listed in the usual one.

    MMS hands on names as the client wrote them; HTTP libraries in between, ours too, make them lower case.
    """

    def __init__(self, items: Mapping[str, Any]) -> None:
        super().__init__({usual_case(name) if isinstance(value, str) else name: value for name, value in items.items()})
        self._names = {name.lower(): name for name in self}

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(self._names.get(name.lower(), name), default)

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(self._names.get(name.lower(), name))

    def __contains__(self, name: object) -> bool:
        return super().__contains__(self._names.get(str(name).lower(), name))


def usual_case(name: str) -> str:
    return name.title().replace("Sagemaker", "SageMaker")


@functools.cache
def _any_case_request_processor() -> type:
    from mms.context import RequestProcessor

    class AnyCaseRequestProcessor(RequestProcessor):  # type: ignore[misc]
        def __init__(self, headers: Mapping[str, Any]) -> None:
            super().__init__(_AnyCase(headers))

    return AnyCaseRequestProcessor
