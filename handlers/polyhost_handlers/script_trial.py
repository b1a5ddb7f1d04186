"""
Whether a container's script can be imported, tried before any model of the container is loaded.

A script may want what only a model brings: a module or a file of its archive. So a fault says, too, what it may be due
to.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from polyhost_handlers.artifacts import script_of
from polyhost_handlers.errors import LoadFailed


class Blame(str, enum.Enum):
    """What would have to change."""

    SCRIPT = "script"  # no model makes it better
    EITHER = "either"  # the module that is missing, or whatever it stumbled over, may be a model's
    MODEL = "model"  # a file is missing or cannot be read: most likely a model's


@dataclass(frozen=True)
class Fault:
    """`message`: a sentence without its full stop."""

    message: str
    blame: Blame


def fault_of(model_dir: Path, environ: Mapping[str, str]) -> Fault | None:
    """
    Why the container's script cannot be imported for a model in `model_dir`, which may be an empty folder.

    None where it can be, and where the model brings a script of its own. Changes the process as a load does.
    """
    from polyhost_handlers.script_handler import imported  # with numpy, which the server itself does without

    script = script_of(model_dir, environ)
    if script is None or script.is_relative_to(model_dir):
        return None
    sys.path.append(str(model_dir))
    try:
        imported(script, model_dir)
    except LoadFailed as error:
        message = error.message.removeprefix("Unable to load model: ").removesuffix(".")
        return Fault(message, _blame_for(error.__cause__))
    return None


def _blame_for(cause: BaseException | None) -> Blame:
    if cause is None or isinstance(cause, SyntaxError):  # without a cause: it lacks a function or a requirement
        return Blame.SCRIPT
    return Blame.MODEL if isinstance(cause, OSError) else Blame.EITHER
