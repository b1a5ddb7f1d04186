"""
The command `multi-model-server`, with the native engine behind it.

    multi-model-server --start --model-store / --mms-config FILE --models NAME=URL …    the launcher
        └─ python -m polyhost.mms_command com.amazonaws.ml.mms.ModelServer …            the server

What calls MMS's command, the SageMaker inference toolkit above all, calls this one instead when `bin` beside this
file comes first on its PATH (`polyhost mms-path`). The toolkit does not wait for the command that it starts, it
looks for a process that has MMS's class among its arguments and waits for that one: so the server is started
with it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import click
import psutil

from polyhost.config import Config
from polyhost.engine.protocol import Registration
from polyhost.errors import InvalidSetting, PolyhostError
from polyhost.limits import Limits, base_folder
from polyhost.log import configure_server
from polyhost.mms_properties import mms_properties, without_effect
from polyhost.plan import Plan
from polyhost.processes import flush_and_exit, has_ended

logger = logging.getLogger("polyhost.mms")

# For the PATH: holds the executable and nothing else.
COMMAND_FOLDER = Path(__file__).parent / "bin"

_SERVER_MARK = "com.amazonaws.ml.mms.ModelServer"
_INFERENCE_ADDRESS = "http://127.0.0.1:8080"
_MANAGEMENT_ADDRESS = "http://127.0.0.1:8081"
# Beyond what a server grants the requests that it is answering.
_STOP_SLACK_SECS = 5


def main() -> None:
    arguments = sys.argv[1:]
    is_server = arguments[:1] == [_SERVER_MARK]
    try:
        if is_server:
            flush_and_exit(_run_server(arguments[1:]))
        sys.exit(_launch(arguments))
    except PolyhostError as error:
        click.echo(f"multi-model-server: {error}", err=True)
        sys.exit(error.exit_code)


# The launcher


def _launch(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.stop:
        return _stop()
    pid = _running_server()
    if pid is not None:
        click.echo("Model server is already running, please use multi-model-server --stop to stop MMS.")
        return 1
    _check(options)
    command = [sys.executable, "-m", "polyhost.mms_command", _SERVER_MARK, *arguments]
    if options.foreground:
        # This process becomes the server, so that signals reach it.
        _pid_file().write_text(str(os.getpid()))
        sys.stdout.flush()
        os.execv(sys.executable, command)  # noqa: S606
    _pid_file().write_text(str(subprocess.Popen(command).pid))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="multi-model-server", description="Polyhost, called as Multi Model Server.")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--start", action="store_true", help="start the server (what is done without --stop)")
    action.add_argument("--stop", action="store_true", help="stop the server that was started last")
    parser.add_argument("--mms-config", metavar="FILE", default="config.properties", help="properties, as MMS's")
    parser.add_argument("--model-store", metavar="FOLDER", default="", help="what model urls are relative to")
    parser.add_argument("--models", metavar="[NAME=]URL", nargs="+", default=[], help="models to load at the start")
    parser.add_argument("--log-config", metavar="FILE", help="accepted; POLYHOST_LOG_FORMAT sets the log's form")
    parser.add_argument("--foreground", action="store_true", help="do not return before the server ends")
    return parser


def _check(options: argparse.Namespace) -> None:
    """What MMS's command checks before it starts anything, and the properties: raises InvalidSetting."""
    if options.model_store and not Path(options.model_store).is_dir():
        raise InvalidSetting(f"--model-store directory not found: {options.model_store}")
    for flag, file in (("--log-config", options.log_config), ("--mms-config", options.mms_config)):
        if file and file != _parser().get_default("mms_config") and not Path(file).is_file():
            raise InvalidSetting(f"{flag} file not found: {file}")
    make_plan(_properties(options, os.environ), os.environ)


def _stop() -> int:
    pid = _running_server()
    if pid is None:
        click.echo("Model server is not currently running.")
        return 0
    server = psutil.Process(pid)
    family = [server, *server.children(recursive=True)]
    with contextlib.suppress(psutil.NoSuchProcess):
        server.terminate()
    drain_secs = Config.build({}, os.environ).drain_secs
    ended = has_ended(pid, drain_secs + _STOP_SLACK_SECS)
    for process in [] if ended else family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _pid_file().unlink(missing_ok=True)
    click.echo("Model server stopped.")
    return 0


def _pid_file() -> Path:
    """Where MMS has it: either command knows of the other's server."""
    return Path(tempfile.gettempdir(), ".model_server.pid")


def _running_server() -> int | None:
    """
    The pid in the pid file, if a model server has it.

    The file outlives a killed server and, in a container's disk, its restart: then the pid may be another's.
    """
    try:
        pid = int(_pid_file().read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        pid = 0
    with contextlib.suppress(psutil.Error):
        if pid > 0 and _SERVER_MARK in psutil.Process(pid).cmdline():
            return pid
    click.echo("Removing orphan pid file.")
    _pid_file().unlink(missing_ok=True)
    return None


# The server


def _run_server(arguments: Sequence[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the server handles it
    write_line = configure_server(Config.build({}, os.environ).log_format)
    from polyhost.server import serve_plan  # not in the launcher, which would start twice as slowly

    options = _parser().parse_args(arguments)
    properties = _properties(options, os.environ)
    if idle := without_effect(properties):
        logger.warning("MMS's configuration has what is without effect here: %s", ", ".join(idle))
    try:
        return serve_plan(make_plan(properties, os.environ), write_line)
    finally:
        with contextlib.suppress(OSError):
            if _pid_file().read_text() == str(os.getpid()):
                _pid_file().unlink()


def _properties(options: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, str]:
    return mms_properties(options.mms_config, options.model_store, options.models, environ)


def make_plan(properties: Mapping[str, str], environ: Mapping[str, str]) -> Plan:
    """
    The server that MMS's configuration asks for; what MMS does not know comes from Polyhost's variables.

    Raises InvalidSetting.
    """
    inference = _address(properties, "inference_address", _INFERENCE_ADDRESS)
    management = _address(properties, "management_address", _MANAGEMENT_ADDRESS, default_port=8081)
    limits = Limits.of(properties)
    store = Path(properties.get("model_store") or "/").resolve()
    config = Config.build(
        {
            "host": [inference[0]],
            "port": [str(inference[1])],
            "handler": [properties[name] for name in ("default_service_handler",) if properties.get(name)],
            "model_root": [] if environ.get("POLYHOST_MODEL_ROOT") else _model_roots(store, environ),
        },
        environ,
    )
    return Plan(
        config=config,
        environ=_workers_environ(properties, environ),
        limits=limits,
        startup=_startup_models(properties, store, limits.startup_workers),
        model_store=store,
        management=management if management != inference else None,
    )


def _address(properties: Mapping[str, str], name: str, default: str, default_port: int = 80) -> tuple[str, int]:
    text = properties.get(name) or default
    try:
        url = urlsplit(text)
        port = url.port or default_port
    except ValueError as error:
        raise InvalidSetting(f"{name}: {text} is no address ({error}).") from error
    if url.scheme in ("https", "unix"):
        raise InvalidSetting(f"{name}: {text}: only http is served here; put what speaks {url.scheme} in front.")
    if url.scheme != "http" or not url.hostname:
        raise InvalidSetting(f"{name}: {text} is no address such as http://0.0.0.0:8080.")
    return url.hostname, port


def _model_roots(store: Path, environ: Mapping[str, str]) -> list[str]:
    """The model store; the toolkit's is the whole disk, then the folders where the platform puts models."""
    if store != Path("/"):
        return [str(store)]
    return [str(base_folder(environ) / folder) for folder in ("models", "model")]


def _workers_environ(properties: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    try:
        hidden = re.compile(properties.get("blacklist_env_vars") or r"(?!)")
    except re.error as error:
        raise InvalidSetting(f"blacklist_env_vars: not a regular expression: {error}.") from error
    told = {name: value for name, value in environ.items() if not hidden.fullmatch(name)}
    return {**told, "MMS_DECODE_INPUT_REQUEST": properties.get("decode_input_request", "true")}


def _startup_models(properties: Mapping[str, str], store: Path, workers: int) -> tuple[Registration, ...]:
    wanted = [text for text in properties.get("load_models", "").split(",") if text]
    if [text.upper() for text in wanted] == ["ALL"]:
        wanted = _all_in(store)
    elif not properties.get("model_store") and not all(re.match(r"(.+=)?https?://", text) for text in wanted):
        raise InvalidSetting("--model-store is required to load model locally.")
    named = [text.partition("=") if "=" in text else ("", "", text) for text in wanted]
    is_preloaded = properties.get("preload_model", "").lower() == "true"
    return tuple(
        Registration(url=url, name=name, initial_workers=workers, preload_model=is_preloaded, is_startup=True)
        for name, _, url in named
    )


def _all_in(store: Path) -> list[str]:
    if store == Path("/"):
        raise InvalidSetting("load_models: ALL would be the whole disk: set model_store, or name the models.")
    found = (path for path in store.iterdir() if path.is_dir() or path.suffix in (".mar", ".model"))
    return sorted(path.name for path in found if not path.name.startswith("."))


if __name__ == "__main__":
    main()
