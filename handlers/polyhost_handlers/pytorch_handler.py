"""
PyTorch programs: TorchScript, and what torch.export saves. Asked and answered as in SageMaker's PyTorch container where
a model brings no script: JSON, CSV and npy, nested lists and no names around them.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from polyhost_handlers import codecs, tensors
from polyhost_handlers.artifacts import files_of, torch_programs_in
from polyhost_handlers.base import Handler, ModelSource, Request, Response, entry_point
from polyhost_handlers.errors import (
    BadInput,
    HandlerError,
    LoadFailed,
    NoContent,
    is_out_of_memory,
    load_errors_named,
    sentence_of,
)
from polyhost_handlers.media_types import CSV, JSON, JSONLINES, NPY, NPZ, choose_accept, decoder_for, header_of
from polyhost_handlers.network_files import EXPORTED, torch_format
from polyhost_handlers.tables import Schema
from polyhost_handlers.tensors import Spec

_INPUTS = (JSON, CSV, NPY, NPZ, JSONLINES)
_OUTPUTS = (JSON, CSV, NPY)
_FLOAT32 = np.dtype("float32")


class Program(NamedTuple):
    """`run` takes a tensor for each input."""

    run: Callable[[list[Any]], Any]
    inputs: Sequence[Spec]
    # PyTorch's own dtypes, None where the program does not tell.
    dtypes: Sequence[Any]


class PyTorchHandler(Handler):
    kind = "pytorch"

    def __init__(self, program: Program, device: Any, default_accept: str) -> None:
        self._program = program
        self._device = device
        self._default_accept = default_accept

    @classmethod
    def load(cls, source: ModelSource) -> PyTorchHandler:
        import torch

        path = _model_file(source.model_dir)
        # Many models share this machine. A CUDA device is used where there is one.
        torch.set_num_threads(1)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with load_errors_named(path.name, path.stat().st_size), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript calls itself deprecated
            load = _exported if torch_format(path) == EXPORTED else _scripted
            return cls(load(path, device), device, source.default_accept(JSON))

    def predict(self, request: Request) -> Response:
        import torch

        codecs.require_body(request.body)
        accept = choose_accept(request.accept, _OUTPUTS, self._default_accept)
        arrays = self._arrays(request)
        try:
            with torch.no_grad():
                answer = _values_of(self._program.run([*map(self._tensor, arrays, self._program.dtypes)]))
        except HandlerError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise BadInput(f"The model cannot take this input: {sentence_of(error)}") from error
        return Response(_encoded(answer, accept), accept)

    def _tensor(self, array: np.ndarray[Any, Any], dtype: Any) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(device=self._device, dtype=dtype)

    def _arrays(self, request: Request) -> list[np.ndarray[Any, Any]]:
        specs = self._program.inputs
        content_type = decoder_for(request.content_type, _INPUTS, default=JSON)
        if content_type in (CSV, NPY) and len(specs) > 1:
            names = ", ".join(spec.name for spec in specs)
            raise BadInput(f'The model has several inputs: send JSON {{"inputs": {{name: rows}}}} with {names}.')
        if content_type == CSV:
            return [self._fitted(self._table(request), specs[0])]
        if content_type == NPY:
            return [self._fitted(codecs.decode_npy(request.body), specs[0])]
        if content_type == NPZ:
            arrays = codecs.decode_npz(request.body)
            is_one = len(arrays) == len(specs) == 1
            given = {specs[0].name: next(iter(arrays.values()))} if is_one else arrays
            given = tensors.checked(given, [spec.name for spec in specs])
        else:
            given = tensors.by_name(_document(request.body, content_type), specs)
        fitted = [self._fitted(given[spec.name], spec) for spec in specs]
        for array in fitted:
            if array.dtype.kind == "f":
                codecs.check_infinite(array, request.body, content_type)
        return fitted

    def _table(self, request: Request) -> np.ndarray[Any, Any]:
        """Where the program does not tell its shape, a row is a vector, as numpy.genfromtxt has it in the container."""
        spec = self._program.inputs[0]
        matrix = codecs.decode_matrix(request.body, CSV, Schema(spec.width), header_of(request.content_type))
        return matrix if spec.shape is not None else tensors.fitted(np.squeeze(matrix), Spec(spec.name, _FLOAT32))

    @staticmethod
    def _fitted(values: Any, spec: Spec) -> np.ndarray[Any, Any]:
        """An exported program says of each dimension how large it may be, the first one too."""
        return tensors.fitted(values, spec, has_free_rows=False)


def _document(body: bytes, content_type: str) -> Any:
    if content_type == JSON:
        return codecs.parse_json(body)
    lines = [codecs.parse_json(line) for line in body.splitlines() if line.strip()]
    if not lines:
        raise NoContent("The request has no rows.")
    return lines


# Loading


def _scripted(path: Path, device: Any) -> Program:
    import torch

    module = torch.jit.load(str(path), map_location=device).eval()
    arguments = module.forward.schema.arguments[1:]
    wanted = [one for one in arguments if not one.has_default_value()]
    for argument in wanted:
        if str(argument.type) not in ("Tensor", "Optional[Tensor]"):
            raise LoadFailed(
                f"Unable to load model: forward takes {argument.name} as {argument.type}, and a request gives "
                "tensors: script a module that takes tensors, or put a code/inference.py into the archive."
            )
    if not wanted:
        raise LoadFailed(f"Unable to load model: forward in {path.name} takes no tensor.")
    specs = [Spec(argument.name) for argument in wanted]
    return Program(lambda given: module(*given), specs, [None] * len(specs))


def _exported(path: Path, device: Any) -> Program:
    import torch
    from torch.utils._pytree import tree_unflatten

    _refuse_code_in(path)
    with _weights_only(), path.open("rb") as file:
        try:
            exported = torch.export.load(file)
        except pickle.UnpicklingError as error:
            raise LoadFailed(
                f"Unable to load model: {path.name} has weights that are no plain tensors, but a pickle of other "
                "objects: save it by torch.export.save."
            ) from error
    if device.type == "cuda":
        from torch.export.passes import move_to_device_pass

        exported = move_to_device_pass(exported, str(device))
    inputs = [_declared(exported, name) for name in exported.graph_signature.user_inputs]
    structure = exported.call_spec.in_spec
    module = exported.module()

    def run(given: list[Any]) -> Any:
        positional, named = tree_unflatten(given, structure)
        return module(*positional, **named)

    return Program(run, [spec for spec, _ in inputs], [dtype for _, dtype in inputs])


def _declared(exported: Any, name: Any) -> tuple[Spec, Any]:
    """An input's shape and dtype, and that as PyTorch's own. Raises LoadFailed."""
    import torch

    node = next((one for one in exported.graph.nodes if one.op == "placeholder" and one.name == name), None)
    tensor = node.meta.get("val") if node is not None else None
    if not isinstance(tensor, torch.Tensor):
        raise LoadFailed(
            f"Unable to load model: it takes {name}, which is no tensor: export it without, or put a code/inference.py "
            "into the archive."
        )
    sizes = [size if isinstance(size, int) else None for size in tensor.shape]
    try:
        dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
    except TypeError:  # bfloat16, which numpy has not
        dtype = _FLOAT32
    return Spec(str(name), dtype, sizes), tensor.dtype


def _refuse_code_in(path: Path) -> None:
    """Objects that only a pickle can bring back, and compiled libraries. Raises LoadFailed."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    for name in names:
        folder, _, file = name.partition("/")[2].rpartition("/")
        is_object = folder == "data/constants" and not file.startswith(("tensor_", "model_constants_config"))
        if is_object or folder.startswith("data/aotinductor"):
            raise LoadFailed(
                f"Unable to load model: {path.name} holds {name[:80]}, which is code or a pickle: export it without, "
                "or load it in a code/inference.py of the archive if you trust whoever made it."
            )


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """PyTorch's own switch, which holds for each file that it unpickles on the way: tensors, and no other objects."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _model_file(model_dir: Path) -> Path:
    found = torch_programs_in(model_dir)
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found or files_of(model_dir)) or "nothing"
    raise LoadFailed(
        f"Unable to load model: one TorchScript or torch.export file belongs in the archive, found {names}."
    )


# Answering


def _values_of(output: Any) -> Any:
    """Tensors as arrays, in the lists, tuples and dicts that they came in. Raises HandlerError."""
    import torch

    if isinstance(output, torch.Tensor):
        return _array_of(output)
    if isinstance(output, (list, tuple)):
        return [_values_of(item) for item in output]
    if isinstance(output, dict):
        return {str(name): _values_of(item) for name, item in output.items()}
    if output is None or isinstance(output, (bool, int, float, str)):
        return output
    raise HandlerError(f"The model answers a {type(output).__name__}, which no format here can hold.")


def _array_of(tensor: Any) -> np.ndarray[Any, Any]:
    import torch

    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_complex():
        raise HandlerError("The model answers complex numbers, which no format here can hold.")
    # What numpy has not, bfloat16 and smaller, fits into float32.
    tensor = tensor.float() if tensor.is_floating_point() and tensor.element_size() < 4 else tensor
    array: np.ndarray[Any, Any] = tensor.cpu().resolve_conj().resolve_neg().numpy()
    return array


def _encoded(answer: Any, accept: str) -> bytes:
    if accept == JSON:
        return codecs.encode_json(answer)
    while isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if not isinstance(answer, np.ndarray):
        raise HandlerError("The model answers several values, which are no table: ask for application/json.", 415)
    return codecs.encode_array(np.atleast_1d(answer) if accept == CSV else answer, accept)


HANDLER = PyTorchHandler
handle = entry_point(PyTorchHandler)
