"""`polyhost demo`: makes sample models, serves them, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from polyhost.config import Config
from polyhost.errors import MissingDependency, StartFailed
from polyhost.greeting import Call, greeting
from polyhost.server import require_free_port, serve
from polyhost.temporary import own_folder

_COMPLETE = ".complete"
_NEEDED = ("joblib", "sklearn", "xgboost")
_HOUSE = "1998,2150,3,2.5,0.4,2"
# About, target, type, body.
_CALLS = (
    ("XGBoost: the price of a house in Houston", "houston", "text/csv", _HOUSE),
    ("XGBoost: the same house in Boston", "boston", "text/csv", _HOUSE),
    ("scikit-learn: prepare a house with a deck, without a porch", "house_preprocessor", "text/csv", f"{_HOUSE},y,n"),
    ("linear learner: eight prepared features", "house_linear_learner", "text/csv", "0.4,0.3,-0.2,0.1,0,1,1,0"),
    ("ONNX: a price in Denver", "house_network", "application/json", f"[[{_HOUSE}]]"),
    ("a script of your own: the tone of a description", "listing_tone", "application/json",
     '{"text": "A sunny, charming house."}'),
    ("MXNet: the five best classes of a picture (random weights!)", "squeezenet", "application/x-image",
     "@{models}/picture.png"),
)  # fmt: skip


def demo(folder: Path | None, port: int, environ: Mapping[str, str]) -> int:
    """`folder`: where the models are to stay. Returns the server's exit code. Raises PolyhostError."""
    with own_folder("demo-") as temporary:
        flags = {"state_dir": [str(temporary / "state")], "port": [str(port)]}
        config = Config.build(flags, environ)
        require_free_port(config.host, config.port)
        models = folder or temporary / "models"
        if not (models / _COMPLETE).exists():
            _make(models)
        config = Config.build({**flags, "models": [str(models)]}, environ)
        return serve(config, environ, greeting(config, _calls(models)))


def _make(models: Path) -> None:
    missing = [name for name in _NEEDED if not importlib.util.find_spec(name)]
    if missing:
        raise MissingDependency(
            f"`polyhost demo` trains models with packages that are not installed ({', '.join(missing)}): "
            "pip install 'polyhost[all]'."
        )
    click.echo(f"Training the sample models into {models} …", err=True)
    command = [sys.executable, "-m", "polyhost.demo.models", str(models)]
    # In a session of its own, so that it is we who end it on Ctrl-C, without a traceback.
    if subprocess.run(command, check=False, start_new_session=True).returncode:
        raise StartFailed(f"the sample models could not be made in {models}: what Python said is above.")


def _calls(models: Path) -> list[Call]:
    """The calls whose models are in the folder."""
    return [
        Call(f"{name}.tar.gz", about, content_type, body.replace("{models}", str(models)))
        for about, name, content_type, body in _CALLS
        if (models / f"{name}.tar.gz").exists()
    ]
