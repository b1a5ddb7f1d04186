"""PyTorch's programs and TensorFlow's models in an unpacked archive, by names and a few bytes; imports no framework."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from polyhost_handlers.errors import LoadFailed

TORCHSCRIPT, EXPORTED = "TorchScript", "torch.export"
# A zip's directory lies at its end. Both formats write what tells them apart as one of their last entries.
_HEAD_BYTES, _TAIL_BYTES = 200, 64 * 1024
# The second is of torch.export before 2.8.
_OF_EXPORTED = (b"/archive_format", b"serialized_exported_program.json")
_SAVED_MODEL = ("saved_model.pb", "saved_model.pbtxt")
# As TensorFlow Serving has them: NAME/VERSION, which SageMaker puts below `export`.
_MAX_DEPTH = 3
_MAX_FOLDERS = 1000
_MODEL_NAME = "SAGEMAKER_TFS_DEFAULT_MODEL_NAME"


def torch_format(path: Path) -> str:
    """TORCHSCRIPT, which a file that is cut off counts as, or EXPORTED; "" for what holds no program, as weights do."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        if not head.startswith(b"PK\x03\x04"):
            return ""
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        tail = file.read(_TAIL_BYTES)
    is_cut_off = b"PK\x05\x06" not in tail and b"/data" in head
    if b"/constants.pkl" in tail or is_cut_off:
        return TORCHSCRIPT
    return EXPORTED if any(name in tail for name in _OF_EXPORTED) else ""


def is_keras(path: Path) -> bool:
    """A model in one file, which Keras itself knows by its name. Weights alone are none."""
    is_weights = path.name.endswith(("weights.h5", "weights.hdf5"))
    return path.suffix in (".keras", ".h5", ".hdf5") and not is_weights


def saved_models_in(model_dir: Path) -> list[Path]:
    """The folders that are a SavedModel, but those of an MLflow model, sorted."""
    return sorted(islice(_saved_models(model_dir, _MAX_DEPTH), _MAX_FOLDERS))


def _saved_models(folder: Path, depth: int) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        found = list(islice(entries, _MAX_FOLDERS))
    names = {entry.name for entry in found if entry.is_file(follow_symlinks=False)}
    if "MLmodel" in names:
        return
    if not names.isdisjoint(_SAVED_MODEL):
        yield folder
    elif depth:
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                yield from _saved_models(Path(entry.path), depth - 1)


def chosen_saved_model(found: Sequence[Path], model_dir: Path, name: str = "") -> Path:
    """
    The newest version of the only model, or of the one called `name`. Raises LoadFailed.

    A version is a folder whose name is a number, as TensorFlow Serving has it.
    """
    models: dict[Path, list[Path]] = {}
    for folder in found:
        models.setdefault(folder.parent if folder.name.isdecimal() else folder, []).append(folder)
    wanted = [versions for model, versions in models.items() if name in ("", model.name)]
    if len(wanted) != 1:
        names = ", ".join(str(model.relative_to(model_dir)) for model in models)
        raise LoadFailed(
            f"Unable to load model: one SavedModel belongs in the archive, found {names}. Name one of them in "
            f"{_MODEL_NAME}."
        )
    return max(wanted[0], key=lambda folder: int(folder.name) if folder.name.isdecimal() else 0)
