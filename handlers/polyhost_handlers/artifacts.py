"""
What lies in an unpacked archive: which framework wrote it, and which files are its own.

Reads names and the first bytes of files, loads nothing and imports no framework, so that it can also run
before a worker's interpreter is chosen.
"""

from __future__ import annotations

import contextlib
import os
import pickletools
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyhost_handlers.compression import beginning_of
from polyhost_handlers.errors import LoadFailed
from polyhost_handlers.foreign import GIT_LFS, GIT_LFS_POINTER, PACK_IT, file_kind, foreign_model
from polyhost_handlers.network_files import is_keras, saved_models_in, torch_format

_HEAD_BYTES = 4096
_TAIL_BYTES = 64 * 1024
_POINTER_BYTES = 1024  # what Git LFS grants a pointer
_MODEL_NAME = re.compile(
    r"xgboost-model$|model_algo-1|.*\.(joblib|pkl|pickle)(\.\w+)?$|.*\.(onnx|params|pt|pth|pt2|keras|h5)$|.*-symbol\.json$"
)
EMPTY = "empty"

LINEAR_LEARNER_ARCHIVE = "model_algo-1"
KNN_INDEX, KNN_LABELS, KNN_METADATA = "model_algo-1", "model_algo-1.labels", "model_algo-1.json"
# A pickle, as it is or compressed.
_PICKLE_NAME = re.compile(r"\.(joblib|pkl|pickle)(\.(gz|gzip|z|zlib|bz2|xz|lzma|lz4))?$")
# JSON has `"learner": {`, UBJSON `learner{`; other JSON files may speak of learners too.
_LEARNER = re.compile(rb'learner("\s*:\s*)?\{')
# XGBoost's old binary format begins with numbers, whose bytes may be any; after them stand the objective's name and
# the booster's, each after its length.
_OLD_BOOSTER = re.compile(
    rb"(binf)?.{136}[\x08-\x40]\0{7}(reg|binary|multi|rank|count|survival):[a-z]+[\x04-\x08]\0{7}(gbtree|gblinear|dart)",
    re.DOTALL,
)
# LightGBM's text, or what it dumps as JSON.
_LIGHTGBM = re.compile(rb'tree\nversion=|\s*\{\s*"name"\s*:\s*"tree"\s*,\s*"version"\s*:\s*"v\d')


@dataclass(frozen=True)
class Kind:
    """One kind of archive: its handler's module, how it is recognised, and that in words."""

    name: str
    module: str
    looked_for: str
    is_found_in: Callable[[Path, Mapping[str, str]], bool]
    # The distribution that its workers need besides what the server's own environment always has.
    package: str = ""
    # Whether its files are pickles that are really unpickled, which runs what they say, or as dangerous.
    is_pickle: bool = False
    # Whether the archive brings Python code to run.
    has_code: bool = False

    @property
    def handler_spec(self) -> str:
        return f"{self.module}:handle"


def recognise(model_dir: Path, environ: Mapping[str, str]) -> Kind:
    """
    The kind of archive in `model_dir`; the first that fits, code before data.

    Raises LoadFailed, saying what was looked for and what is there.
    """
    if not model_dir.is_dir():
        raise LoadFailed(f"{model_dir} is not a folder.")
    for kind in KINDS:
        if kind.is_found_in(model_dir, environ):
            if kind.name != "script":
                _refuse_without_script(environ)
                _refuse_stand_ins(model_dir)
            return kind
    _refuse_without_script(environ)
    _refuse_stand_ins(model_dir)
    if foreign := foreign_model(model_dir):
        raise LoadFailed(foreign)
    looked_for = "; ".join(f"{kind.looked_for} ({kind.name})" for kind in KINDS)
    raise LoadFailed(f"No handler knows this archive. Looked for: {looked_for}. Found: {_found(model_dir)}.")


def _refuse_stand_ins(model_dir: Path) -> None:
    """A model's file that is empty or only points to another holds no model. Raises LoadFailed."""
    for path in files_of(model_dir):
        if path.stat().st_size < _POINTER_BYTES and (_MODEL_NAME.match(path.name) or _head(path).startswith(GIT_LFS)):
            what, cure = raw_file(path)
            if what in (EMPTY, GIT_LFS_POINTER):
                raise LoadFailed(f"Unable to load model: {path.name} is {what}: {cure}.")


def raw_file(path: Path) -> tuple[str, str]:
    """
    What a file that is no archive is, by its first bytes, and what to do with it: ("a CatBoost model", "pack it …").

    Where gzip compressed it, what it holds. ("", "") for bytes that say nothing.
    """
    head = _head(path)
    if head.startswith(b"\x1f\x8b"):
        with contextlib.suppress(zlib.error):
            head = zlib.decompressobj(wbits=31).decompress(head, _HEAD_BYTES) or head
    if not head:
        return EMPTY, "an upload or download was cut off, or never began; put it there again"
    if is_booster_head(head) or is_pickle(head):
        module = "xgboost" if is_booster_head(head) else pickled_module(head).partition(".")[0]
        what = {"xgboost": "an XGBoost model", "": "a pickle"}.get(module, f"a pickle of {module}")
        return what, PACK_IT
    return file_kind(head)


def kind_named(name: str) -> Kind | None:
    """The kind with that name or that handler module, e.g. `xgboost` or `polyhost_handlers.xgboost_handler`."""
    return next((kind for kind in KINDS if name in (kind.name, kind.module)), None)


def files_of(model_dir: Path) -> list[Path]:
    """The archive's own files at its top, hidden ones left out, sorted by name."""
    with os.scandir(model_dir) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith((".", "_")) and _is_file(entry)]
    return [model_dir / name for name in sorted(names)]


def folder_bytes(folder: str | Path) -> int:
    """What the files of a folder and of those below it hold; linked files count, linked folders do not."""
    size_bytes = 0
    folders = [str(folder)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif _is_file(entry):
                    size_bytes += entry.stat().st_size
    return size_bytes


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def script_of(model_dir: Path, environ: Mapping[str, str]) -> Path | None:
    """
    The archive's own `code/inference.py`, else the container's script, else one beside the model, else None.

    SAGEMAKER_PROGRAM names it otherwise; SAGEMAKER_SUBMIT_DIRECTORY is where the container's code lies. A script
    beside the model counts where the archive has no folder `code`.
    """
    program = _program_of(environ)
    folders = [model_dir / "code"]
    submit_directory = _submit_directory_of(environ)
    if submit_directory is not None:
        folders.append(submit_directory)
    if not (model_dir / "code").is_dir():
        folders.append(model_dir)
    return next((script for folder in folders if (script := _script_in(folder, program))), None)


def _script_in(folder: Path, program: str) -> Path | None:
    script = folder / program
    return script if script.is_file() and script.resolve().is_relative_to(folder.resolve()) else None


def container_script(environ: Mapping[str, str]) -> Path | None:
    """The script in the container's own code, where that is on this machine; None if there is none."""
    folder = _submit_directory_of(environ)
    return None if folder is None else _script_in(folder, _program_of(environ))


def missing_script(environ: Mapping[str, str]) -> str:
    """The script that SAGEMAKER_PROGRAM names, where the container's code is on this machine and lacks it; else ""."""
    is_named = _submit_directory_of(environ) is not None and environ.get("SAGEMAKER_PROGRAM")
    return _program_of(environ) if is_named and container_script(environ) is None else ""


def _refuse_without_script(environ: Mapping[str, str]) -> None:
    """
    A container that has a script answers by it: without it the model's own answers would be others. Raises LoadFailed.
    """
    submit_directory = _submit_directory_of(environ)
    if submit_directory is not None and (environ.get("SAGEMAKER_PROGRAM") or submit_directory.is_dir()):
        raise LoadFailed(
            f"Unable to load model: the container's script {_program_of(environ)} is neither in the archive's code/ "
            "nor at the top of SAGEMAKER_SUBMIT_DIRECTORY."
        )


def _program_of(environ: Mapping[str, str]) -> str:
    program = environ.get("SAGEMAKER_PROGRAM") or "inference.py"
    return program if program.endswith(".py") else f"{program}.py"


def _submit_directory_of(environ: Mapping[str, str]) -> Path | None:
    """Where the container's code lies on this machine, None if there is none or it was not fetched."""
    submit_directory = environ.get("SAGEMAKER_SUBMIT_DIRECTORY", "").removeprefix("file://")
    return Path(submit_directory) if submit_directory and "://" not in submit_directory else None


def boosters_in(model_dir: Path) -> list[Path]:
    """The files that hold an XGBoost model, in any generation of its formats."""
    return [path for path in files_of(model_dir) if is_booster(path)]


def is_booster(path: Path) -> bool:
    return is_booster_head(_head(path))


def is_booster_head(head: bytes) -> bool:
    """By a file's first bytes alone."""
    if is_old_binary(head):
        return True
    head = beginning_of(head, _HEAD_BYTES)
    if head.startswith(b"{"):  # JSON, or UBJSON, which begins with "{L"
        return _LEARNER.search(head) is not None
    if is_pickle(head):
        return pickled_module(head).partition(".")[0] == "xgboost"
    return head.startswith((b"binf", b"bs64"))


def is_old_binary(head: bytes) -> bool:
    """Whether it is a model in XGBoost's old binary format; 300 bytes tell."""
    return _OLD_BOOSTER.match(head) is not None


def is_pickle(head: bytes) -> bool:
    return head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"ccopy_reg\n", b"ccopyreg\n"))


def pickled_module(head: bytes) -> str:
    """The module of the first class that a pickle names, "" if its beginning does not tell."""
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(head):
            if opcode.name == "GLOBAL":
                module = str(argument).split(" ")[0]
                if module not in ("copy_reg", "copyreg", "__builtin__", "builtins"):
                    return module
            elif opcode.name == "STACK_GLOBAL" and len(strings) > 1:
                return strings[-2]
            elif isinstance(argument, str):
                strings.append(argument)
    except (ValueError, IndexError):
        pass  # the head ends in the middle of the pickle
    return ""


def first_module(path: Path) -> str:
    """The module of the first class that a file pickles, "" for what is no pickle, or does not tell."""
    head = beginning_of(_head(path), _HEAD_BYTES)
    return pickled_module(head) if is_pickle(head) else ""


def checkpoints_in(model_dir: Path) -> list[tuple[Path, Path]]:
    """MXNet Module checkpoints: the pairs of `PREFIX-symbol.json` and its latest `PREFIX-NNNN.params`."""
    pairs = []
    files = files_of(model_dir)
    for symbol in [path for path in files if path.name.endswith("-symbol.json")]:
        prefix = symbol.name.removesuffix("-symbol.json")
        pattern = re.compile(re.escape(prefix) + r"-\d{4}\.params")
        params = [path for path in files if pattern.fullmatch(path.name)]
        if params:
            pairs.append((symbol, params[-1]))
    return pairs


def estimators_in(model_dir: Path) -> list[Path]:
    """Pickled scikit-learn objects: `model.joblib` and its like; any suffix if the pickle names sklearn."""
    return [path for path in files_of(model_dir) if _is_estimator(path)]


def _is_estimator(path: Path) -> bool:
    head = _head(path)
    # PyTorch writes zips, whatever they are called; MLflow pickles a class of its own around any model.
    if head.startswith(b"PK") or (path.name == "python_model.pkl" and (path.parent / "MLmodel").is_file()):
        return False
    is_named = _PICKLE_NAME.search(path.name) is not None
    return is_named or (is_pickle(head) and pickled_module(head).startswith("sklearn"))


def networks_in(model_dir: Path) -> list[Path]:
    return [path for path in files_of(model_dir) if path.suffix == ".onnx"]


def lightgbm_models_in(model_dir: Path) -> list[Path]:
    """By their first bytes, text or JSON, whatever they are called."""
    return [path for path in files_of(model_dir) if _LIGHTGBM.match(_head(path))]


def catboost_models_in(model_dir: Path) -> list[Path]:
    return [path for path in files_of(model_dir) if path.suffix == ".cbm" or _head(path).startswith(b"CBM1")]


def skops_models_in(model_dir: Path) -> list[Path]:
    return [path for path in files_of(model_dir) if path.suffix == ".skops"]


def torch_programs_in(model_dir: Path) -> list[Path]:
    """TorchScript, or what torch.export saved, whatever the file is called."""
    return [path for path in files_of(model_dir) if torch_format(path)]


def keras_models_in(model_dir: Path) -> list[Path]:
    return [path for path in files_of(model_dir) if is_keras(path)]


def _is_linear_learner(model_dir: Path) -> bool:
    """The zip by the names in its directory, which lies at its end, or in the entry at its beginning."""
    archive = model_dir / LINEAR_LEARNER_ARCHIVE
    if not archive.is_file():
        return (model_dir / "additional-params.json").is_file() and bool(checkpoints_in(model_dir))
    head = _head(archive)
    names = head + _tail(archive)
    return head.startswith(b"PK") and b"mx-mod-" in names


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _is_knn(model_dir: Path) -> bool:
    return all((model_dir / name).is_file() for name in (KNN_INDEX, KNN_LABELS, KNN_METADATA))


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read(_TAIL_BYTES)


def _found(model_dir: Path) -> str:
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in model_dir.iterdir())
    if not names:
        return "nothing, the archive is empty"
    if len(names) == 1 and names[0].endswith("/"):
        return f"only the folder {names[0]} (pack the files themselves, not the folder they are in)"
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more


KINDS: Sequence[Kind] = (
    Kind(
        "script",
        "polyhost_handlers.script_handler",
        "code/inference.py, or inference.py where there is no folder code",
        lambda folder, environ: script_of(folder, environ) is not None,
        has_code=True,
    ),
    Kind(
        "knn",
        "polyhost_handlers.knn_handler",
        f"{KNN_INDEX} with {KNN_LABELS} and {KNN_METADATA}",
        lambda folder, _: _is_knn(folder),
    ),
    Kind(
        "linear-learner",
        "polyhost_handlers.linear_learner_handler",
        f"{LINEAR_LEARNER_ARCHIVE} that is a zip",
        lambda folder, _: _is_linear_learner(folder),
    ),
    Kind(
        "mxnet",
        "polyhost_handlers.mxnet_handler",
        "*-symbol.json with *-0000.params",
        lambda folder, _: bool(checkpoints_in(folder)),
        package="mxnet",
    ),
    Kind("onnx", "polyhost_handlers.onnx_handler", "*.onnx", lambda folder, _: bool(networks_in(folder))),
    Kind(
        "xgboost",
        "polyhost_handlers.xgboost_handler",
        "xgboost-model or any file that is an XGBoost model",
        lambda folder, _: (folder / "xgboost-model").is_file() or bool(boosters_in(folder)),
    ),
    Kind(
        "sklearn",
        "polyhost_handlers.sklearn_handler",
        "model.joblib, *.pkl",
        lambda folder, _: bool(estimators_in(folder)),
        is_pickle=True,
    ),
    # Below are the handlers whose libraries the server's own environment need not have.
    Kind(
        "skops",
        "polyhost_handlers.skops_handler",
        "*.skops",
        lambda folder, _: bool(skops_models_in(folder)),
        package="skops",
        is_pickle=True,  # nothing in it is run, but scikit-learn believes the nodes of its trees
    ),
    Kind(
        "lightgbm",
        "polyhost_handlers.lightgbm_handler",
        "a file that is a LightGBM model, text or JSON",
        lambda folder, _: bool(lightgbm_models_in(folder)),
        package="lightgbm",
    ),
    Kind(
        "catboost",
        "polyhost_handlers.catboost_handler",
        "*.cbm, or any file that is a CatBoost model",
        lambda folder, _: bool(catboost_models_in(folder)),
        package="catboost",
    ),
    Kind(
        "mlflow",
        "polyhost_handlers.mlflow_handler",
        "MLmodel",
        lambda folder, _: (folder / "MLmodel").is_file(),
        package="mlflow",
        has_code=True,
    ),
    Kind(
        "pytorch",
        "polyhost_handlers.pytorch_handler",
        "a file that TorchScript or torch.export saved",
        lambda folder, _: bool(torch_programs_in(folder)),
        package="torch",
        is_pickle=True,  # a program, of which a file of torch.export is read by eval in part
    ),
    Kind(
        "tensorflow",
        "polyhost_handlers.tensorflow_handler",
        "saved_model.pb; *.keras, *.h5",
        lambda folder, _: bool(keras_models_in(folder) or saved_models_in(folder)),
        package="tensorflow",
        is_pickle=True,  # a program, whose operators read and write files
    ),
)
