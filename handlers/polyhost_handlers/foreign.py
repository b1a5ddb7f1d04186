"""
Models of other frameworks, by name: what a file is, and what an archive holds that no handler serves.

Each is recognised by what its framework always writes, and refused by a sentence that names it and the way to serve
it. Reads names and the first bytes of files; imports no framework.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

HEAD_BYTES = 4096
# How MXNet's `.params` begin.
NDARRAY_LIST_MAGIC = 0x112
# A model of many files (TensorFlow's assets, MLflow's environment) shows what it is in far fewer.
_MAX_NAMES = 2000
_MAX_HEADS = 50
_MAX_DEPTH = 4

GIT_LFS = b"version https://git-lfs.github.com/spec/"
GIT_LFS_POINTER = "a pointer of Git LFS"
PACK_IT = "pack it first: tar -czf model.tar.gz FILE"
_PACK_WITH_SCRIPT = "pack it with a code/inference.py whose model_fn loads it: tar -czf model.tar.gz FILE code"
_IN_ENVIRONMENT = (
    "put code/inference.py with a model_fn that loads it into the archive, with POLYHOST_ENVIRONMENT = '{0}' in it, "
    "and run polyhost env build {0} where the server runs"
)
_SCRIPT = "put code/inference.py with a model_fn that loads it into the archive, and install {} where the server runs"


@dataclass(frozen=True)
class Foreign:
    """A kind of model that no handler serves."""

    what: str
    cure: str
    # By the archive's names (`model/1/saved_model.pb`), and the first bytes of the files at its top.
    is_found_in: Callable[[list[str], Mapping[str, bytes]], bool]


def foreign_model(model_dir: Path) -> str:
    """The sentence about the model of another framework in an unpacked archive, "" where there is none."""
    names = list(islice(_names(model_dir), _MAX_NAMES))
    tops = sorted(name for name in names if "/" not in name)[:_MAX_HEADS]
    heads = {name: _head(model_dir / name) for name in tops}
    for kind in _FOREIGN:
        if kind.is_found_in(names, heads):
            return f"The archive holds {kind.what}, which no handler here serves: {kind.cure}."
    return ""


def file_kind(head: bytes) -> tuple[str, str]:
    """What a file is that begins like this, and what to do with it in place of an archive; "" where that is unknown."""
    return next(((what, cure) for what, (is_it, cure) in _FILES.items() if is_it(head)), ("", ""))


def _names(folder: Path, below: str = "", depth: int = 1) -> Iterator[str]:
    """Regular files as paths from the archive's top; a file that is neither is not looked at."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                if depth < _MAX_DEPTH:
                    yield from _names(Path(entry.path), f"{below}{entry.name}/", depth + 1)
            elif entry.is_file(follow_symlinks=False):
                yield below + entry.name


def _head(path: Path, size: int = HEAD_BYTES) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _named(pattern: str) -> Callable[[list[str], Mapping[str, bytes]], bool]:
    """Whether a file of the archive has such a name, wherever it lies."""
    regex = re.compile(rf"(?:.*/)?(?:{pattern})", re.IGNORECASE)
    return lambda names, _: any(regex.fullmatch(name) for name in names)


def _begins(is_it: Callable[[bytes], bool]) -> Callable[[list[str], Mapping[str, bytes]], bool]:
    return lambda _, heads: any(is_it(head) for head in heads.values())


def _either(
    *tests: Callable[[list[str], Mapping[str, bytes]], bool],
) -> Callable[[list[str], Mapping[str, bytes]], bool]:
    return lambda names, heads: any(test(names, heads) for test in tests)


def _algorithm(is_it: Callable[[bytes], bool]) -> Callable[[list[str], Mapping[str, bytes]], bool]:
    return lambda _, heads: "model_algo-1" in heads and is_it(heads["model_algo-1"])


def _is_catboost(head: bytes) -> bool:
    return head.startswith(b"CBM1")


def _is_lightgbm(head: bytes) -> bool:
    return head.startswith(b"tree\nversion=")


def _is_pmml(head: bytes) -> bool:
    return b"<PMML" in head and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def _is_torch(head: bytes) -> bool:
    """A zip whose first entry is in a folder with `data.pkl`, or the pickled number that came before."""
    is_zip = head.startswith(b"PK\x03\x04") and (b"/data.pkl" in head[:200] or b"/.format_version" in head[:200])
    return is_zip or head.startswith(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")


def _is_ndarrays(head: bytes) -> bool:
    return head.startswith(NDARRAY_LIST_MAGIC.to_bytes(8, "little"))


def _is_keras(head: bytes) -> bool:
    return head.startswith(b"\x89HDF\r\n\x1a\n")


def _is_tflite(head: bytes) -> bool:
    return head[4:8] == b"TFL3"


def _is_safetensors(head: bytes) -> bool:
    return head[8:10] == b'{"' and 0 < int.from_bytes(head[:8], "little") < 2**32


def _is_fasttext(head: bytes) -> bool:
    return head.startswith(b"\xba\x16\x4f\x2f")


def _is_gguf(head: bytes) -> bool:
    return head.startswith(b"GGUF")


def _is_onnx(head: bytes) -> bool:
    """A ModelProto: the IR's version, then one of its next fields."""
    return head[:1] == b"\x08" and 1 <= head[1] <= 32 and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42")


def _is_html(head: bytes) -> bool:
    return re.match(rb"\s*<(!doctype html|html)", head, re.IGNORECASE) is not None


def _is_xml(head: bytes) -> bool:
    return head.startswith((b"<?xml", b"\xef\xbb\xbf<?xml"))


def _is_json(head: bytes) -> bool:
    return re.match(rb'\s*(\{\s*["}]|\[\s*["{\[\d-])', head) is not None


_REPACK = "pack the model as tar.gz"
_LOOK = "look at what the download or upload answered"
# Files that people put where an archive belongs, the more special first.
_FILES: Mapping[str, tuple[Callable[[bytes], bool], str]] = {
    "a CatBoost model": (_is_catboost, PACK_IT),
    "a LightGBM model": (_is_lightgbm, PACK_IT),
    "a PMML document": (_is_pmml, _PACK_WITH_SCRIPT),
    "a PyTorch file": (_is_torch, f"{PACK_IT}, with a code/inference.py beside it if it holds weights alone"),
    "a list of MXNet arrays": (_is_ndarrays, _PACK_WITH_SCRIPT),
    "an HDF5 file, as Keras saves models": (_is_keras, PACK_IT),
    "a TensorFlow Lite model": (_is_tflite, _PACK_WITH_SCRIPT),
    "a file of safetensors": (_is_safetensors, _PACK_WITH_SCRIPT),
    "a fastText model": (_is_fasttext, _PACK_WITH_SCRIPT),
    "a GGUF model": (_is_gguf, _PACK_WITH_SCRIPT),
    "a NumPy array": (lambda head: head.startswith(b"\x93NUMPY"), _PACK_WITH_SCRIPT),
    GIT_LFS_POINTER: (
        lambda head: head.startswith(GIT_LFS),
        "run git lfs pull, which fetches the file that it stands for, and put that there",
    ),
    "an HTML page": (_is_html, _LOOK),
    "an XML document": (_is_xml, _LOOK),
    "a JSON document": (_is_json, _LOOK),
    "a Parquet file": (lambda head: head.startswith(b"PAR1"), _PACK_WITH_SCRIPT),
    "a 7z archive": (lambda head: head.startswith(b"7z\xbc\xaf\x27\x1c"), _REPACK),
    "a RAR archive": (lambda head: head.startswith(b"Rar!\x1a\x07"), _REPACK),
    "compressed by zstd": (lambda head: head.startswith(b"\x28\xb5\x2f\xfd"), _REPACK),
    "an ONNX network": (_is_onnx, PACK_IT),
}

_FOREIGN = (
    Foreign(
        "an MLflow folder below its top",
        "pack what is in that folder, so that MLmodel is at the top of the archive",
        _named("MLmodel"),
    ),
    Foreign(
        "a Keras model in parts, or its weights alone",
        "save it whole, by model.save('model.keras'), and pack that file",
        _named(r".*weights\.(h5|hdf5)"),
    ),
    Foreign("an HDF5 file", "call it model.h5 if it is a model that Keras saved", _begins(_is_keras)),
    Foreign(
        "a TensorFlow Lite model", _SCRIPT.format("ai-edge-litert"), _either(_named(r".*\.tflite"), _begins(_is_tflite))
    ),
    Foreign("a CatBoost model below its top", "put the model's file at the top of the archive", _named(r".*\.cbm")),
    Foreign("a PMML document", _SCRIPT.format("pypmml"), _either(_named(r".*\.pmml(\.xml)?"), _begins(_is_pmml))),
    Foreign(
        "a PyTorch model without its program",
        "save it by torch.jit.script(model).save('model.pt') or by torch.export.save, or export it with "
        "torch.onnx.export; or " + _IN_ENVIRONMENT.format("pytorch"),
        _either(_named(r".*\.(pth|pt|ckpt)|pytorch_model.*\.bin|data\.pkl"), _begins(_is_torch)),
    ),
    Foreign(
        "a model in safetensors",
        _SCRIPT.format("transformers"),
        _either(_named(r".*\.safetensors"), _begins(_is_safetensors)),
    ),
    Foreign("a GGUF model", _SCRIPT.format("llama-cpp-python"), _either(_named(r".*\.gguf"), _begins(_is_gguf))),
    Foreign(
        "a fastText model, as SageMaker's BlazingText makes it",
        _SCRIPT.format("fasttext"),
        _either(_named(r"vectors\.(bin|txt)"), _begins(_is_fasttext)),
    ),
    Foreign("a Spark ML pipeline", _SCRIPT.format("pyspark"), _named(r"(stages/[^/]+/)?metadata/part-00000")),
    Foreign("an H2O MOJO", _SCRIPT.format("h2o"), _named(r"model\.ini|.*\.mojo")),
    Foreign("an R object", "serve it from a container of your own", _named(r".*\.(rds|rda|rdata)")),
    Foreign(
        "model_algo-1, a list of MXNet arrays, which SageMaker's k-means, PCA and LDA make",
        _IN_ENVIRONMENT.format("mxnet-1.9") + "; mxnet.nd.load reads it",
        _algorithm(_is_ndarrays),
    ),
    Foreign(
        "model_algo-1 of SageMaker's k-NN without its model_algo-1.json and model_algo-1.labels",
        "pack all three files of the training job's artifact",
        _algorithm(lambda head: re.match(rb"I[A-Za-z0-9]{3}", head) is not None),
    ),
    Foreign(
        "model_algo-1 of a built-in algorithm of SageMaker's that is neither the linear learner nor k-NN (random cut "
        "forest, factorization machines, NTM and others have formats of their own)",
        "train it again with a library that is served, for example scikit-learn's IsolationForest in place of random "
        "cut forest",
        lambda _, heads: "model_algo-1" in heads,
    ),
)
