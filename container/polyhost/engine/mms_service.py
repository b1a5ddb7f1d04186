"""
What runs in each of MMS's worker processes: MMS's own worker, mended.

    python mms_service.py …/mms/model_service_worker.py ARGUMENTS OF MMS'S

The front and this process share a folder, the models' book. There a model's name of the front's, `m7`, has files:
`m7.name`, what the client calls it, and `m7.environment`, the Python environment of its processes, both written by the
front; `m7.failed`, status and sentence of a load that failed,
written here and taken away by the front. Requests carry their id of the front's in a header, and what a handler
answers carries another, by which the front tells it from what MMS says.

Needs MMS, the handlers' package and the standard library: it runs in every Python environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

REQUEST_ID = "X-Polyhost-Request-Id"
IS_ANSWER = "x-polyhost-answer"


def name_file(book: Path, inner_name: str) -> Path:
    return book / f"{inner_name}.name"


def name_of(book: Path, inner_name: str) -> str:
    return name_file(book, inner_name).read_bytes().decode("utf-8", "surrogatepass")


def environment_file(book: Path, inner_name: str) -> Path:
    return book / f"{inner_name}.environment"


def failure_file(book: Path, inner_name: str) -> Path:
    return book / f"{inner_name}.failed"


def main() -> None:
    script, *arguments = sys.argv[1:]
    # Python put our own folder there: its modules must not be a customer's `errors` or `handlers`.
    del sys.path[0]
    book = Path(os.environ["POLYHOST_MODELS_BOOK"])
    _mend_loads(book)
    _mend_requests()
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def _mend_loads(book: Path) -> None:
    """Models get their clients' names; a load that fails says why; what a class raises at load is no secret."""
    from mms.model_loader import LegacyModelLoader, MmsModelLoader

    from polyhost.engine.mms_handlers import loaded_service, module_name
    from polyhost.processes import mark_descendants

    load_legacy = LegacyModelLoader.load

    def load(self: Any, name: str, folder: str, *rest: Any) -> Any:
        mark_descendants(os.getpid())  # what the model starts ends with this process
        handler, gpu, batch_size = rest
        self.module = ModuleType("nothing")  # MMS empties it when the worker ends, also after a failed load
        with _reason_kept(failure_file(book, name)):
            service = loaded_service(name_of(book, name), folder, handler, batch_size, gpu)
        self.module = sys.modules[module_name(handler)]
        return service

    def load_old_form(self: Any, name: str, *rest: Any) -> Any:
        mark_descendants(os.getpid())
        with _reason_kept(failure_file(book, name)):
            return load_legacy(self, name_of(book, name), *rest)

    MmsModelLoader.load = load
    LegacyModelLoader.load = load_old_form


@contextlib.contextmanager
def _reason_kept(file: Path) -> Iterator[None]:
    from polyhost.engine.mms_handlers import load_failure

    try:
        yield
    except BaseException as error:
        # Complete or not there: the front may look while we write.
        unfinished = file.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(load_failure(error)))
        unfinished.rename(file)
        raise


def _mend_requests() -> None:
    """Handlers see the front's ids, MMS its own; a handler's answers are marked."""
    import mms.service

    retrieve = mms.service.Service.retrieve_data_for_inference
    respond = mms.service.create_predict_response
    # The ids of the batch that is being answered. A worker has one batch at a time.
    ids_of_mms: dict[int, str] = {}

    def retrieve_with_fronts_ids(batch: Any) -> tuple[Any, Any, dict[int, str]]:
        processors, items, ids = retrieve(batch)
        ids_of_mms.clear()
        ids_of_mms.update(ids)
        headers = [processor.get_request_properties() for processor in processors]
        return processors, items, {index: headers[index].pop(REQUEST_ID, ids[index]) for index in ids}

    def respond_marked(answers: Any, ids: Mapping[int, str], message: str, code: int, context: Any = None) -> Any:
        if context is not None:  # None where MMS speaks, not the handler
            for index in ids:
                context.set_response_header(index, IS_ANSWER, "1")
        return respond(answers, ids_of_mms, message, code, context)

    mms.service.Service.retrieve_data_for_inference = staticmethod(retrieve_with_fronts_ids)
    mms.service.create_predict_response = respond_marked


if __name__ == "__main__":
    main()
