"""
Every setting, written once: its default, its unit, its words. Flags, environment variables and the table in
docs/settings.md follow from the fields. Built once, frozen, passed down; nothing else reads the settings'
variables.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhost.errors import InvalidSetting

ENGINES = ("mms", "native")
LOG_FORMATS = ("text", "json")
AUTHS = ("off", "sigv4")
ISOLATIONS = ("auto", "shared", "process")

_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """`1.5GiB`, `800m` or `1073741824` in bytes; units are powers of 1024. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is not a size: write for example 800MiB or 4GiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def parse_port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise ValueError(f"'{text}' is not a port: use 1 to 65535")
    return int(text)


def parse_count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"'{text}' is not a number of at least 1")
    return int(text)


def parse_secs(text: str) -> float:
    try:
        secs = float(text)
    except ValueError:
        secs = -1.0
    if not 0 <= secs < 1e9:
        raise ValueError(f"'{text}' is not a number of seconds")
    return secs


def parse_models(text: str) -> str:
    """`s3://bucket/prefix/` or a folder, with its final slash."""
    if text.startswith("s3://"):
        if not re.match(r"s3://[^/]+", text):
            raise ValueError(f"'{text}' names no bucket: write s3://BUCKET/PREFIX/")
    elif "://" in text:
        raise ValueError(f"'{text}' is neither s3://BUCKET/PREFIX/ nor a folder")
    else:
        if not Path(text).is_dir():
            raise ValueError(f"there is no folder '{text}'")
        text = str(Path(text).resolve())
    return text.rstrip("/") + "/"


def parse_endpoint_name(text: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", text):
        raise ValueError(f"'{text}' is not an endpoint's name: letters, digits and hyphens, 63 at most")
    return text


def one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"'{text}' is none of {', '.join(choices)}")
        return text

    return parse


def parse_handler(text: str) -> str:
    """`auto`, a kind such as `xgboost`, `package.module`, `module:function` or `/dir/file.py:function`."""
    if not re.fullmatch(r"[\w./-]+(:\w+)?", text):
        raise ValueError(f"'{text}' is not a handler: write a kind, module:function or /dir/file.py:function")
    return text


def parse_environment(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", text):
        raise ValueError(f"'{text}' is not the name of a Python environment: write a name such as mxnet")
    return text


def setting(
    default: Any,
    words: str,
    *,
    parse: Callable[[str], Any] = str,
    also: tuple[str, ...] = (),
    shown: str | None = None,
    many: bool = False,
) -> Any:
    """
    A field of Config.

    `also`: environment variables that count after the setting's own. `shown`: the default in words.
    """
    metadata = {"words": words, "parse": parse, "also": also, "shown": shown, "many": many}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Config:
    host: str = setting("127.0.0.1", "Address to listen on; the image listens on 0.0.0.0.")
    port: int = setting(8080, "Port for everything.", parse=parse_port, also=("SAGEMAKER_BIND_TO_PORT",))
    engine: str = setting(
        "native",
        "What runs the models: `native`, our own engine; `mms`, the real Multi Model Server behind our front. It needs "
        "Java. The image `polyhost:mms` sets `mms`.",
        parse=one_of(ENGINES),
    )
    handler: str = setting(
        "auto",
        "Handler of models that bring none: `auto` looks into each archive; a kind such as `xgboost`; "
        "`module:function`; `/dir/file.py:function`.",
        parse=parse_handler,
    )
    handler_environment: str | None = setting(
        None,
        "Python environment of handlers and scripts that are not ours, e.g. `mxnet`; a container's Environment may "
        "name another. Our own handlers choose theirs.",
        parse=parse_environment,
        shown="the server's own",
    )
    isolation: str = setting(
        "auto",
        "Which models share processes: `auto`, those of our handlers on archives of data alone; `shared`, all; "
        "`process`, none. Engine `native`.",
        parse=one_of(ISOLATIONS),
    )
    workers_per_model: int | None = setting(
        None,
        "Workers that each model gets when it is loaded.",
        parse=parse_count,
        also=("SAGEMAKER_MODEL_SERVER_WORKERS",),
        shown="1; in single-model mode one per CPU",
    )
    memory_budget: int | None = setting(
        None,
        "Memory for models, e.g. `4GiB`; a model that does not fit is answered 507.",
        parse=parse_bytes,
        shown="80 % of the container's or the machine's memory, less what the idle server uses",
    )
    drain_secs: int = setting(25, "How long requests in flight may take after SIGTERM, seconds.", parse=parse_count)
    log_format: str = setting("text", "`text`, or `json` with one object a line.", parse=one_of(LOG_FORMATS))
    models: str | None = setting(
        None,
        "Serve a multi-model endpoint: `s3://BUCKET/PREFIX/` or a folder of `model.tar.gz` archives; each is loaded "
        "when it is first asked for.",
        parse=parse_models,
        shown="none; models are loaded by `POST /models`",
    )
    endpoint_name: str = setting("polyhost", "Name of the endpoint of `--models`.", parse=parse_endpoint_name)
    state_dir: Path | None = setting(
        None,
        "Folder for what outlives a restart: endpoints made by clients, the cache. Given without `--models`, endpoints "
        "are only those that clients make.",
        parse=Path,
        shown="`~/.local/state/polyhost/` and the endpoint's name",
    )
    cache_dir: Path | None = setting(
        None, "Folder for unpacked archives.", parse=Path, shown="`cache` in the state folder"
    )
    disk_budget: int | None = setting(
        None,
        "Disk for unpacked archives, e.g. `50GiB`; those not loaded go first, least recently used.",
        parse=parse_bytes,
        shown="80 % of what is free at the start",
    )
    refresh_secs: float = setting(
        60.0,
        "How often buckets and folders are looked at for archives that were overwritten or deleted; 0: only on demand.",
        parse=parse_secs,
    )
    preload: tuple[str, ...] = setting(
        (),
        "Target model that is loaded at the start and never evicted, or `@FILE` with one a line; may be given several "
        "times (in the variable, separated by `:`).",
        shown="none",
        many=True,
    )
    model_ready_timeout_secs: float = setting(
        55.0,
        "How long a request waits for its model's load before it is answered ModelNotReadyException; the load goes on.",
        parse=parse_secs,
    )
    model_load_timeout_secs: float = setting(360.0, "How long fetching and loading a model may take.", parse=parse_secs)
    tls_cert: Path | None = setting(None, "File of the certificate, with its chain, PEM.", parse=Path, shown="no TLS")
    tls_key: Path | None = setting(
        None, "File of the certificate's key, PEM.", parse=Path, shown="in the certificate's"
    )
    auth: str = setting("off", "Who may call: `off`, everybody; `sigv4`, those in `--auth-file`.", parse=one_of(AUTHS))
    auth_file: Path | None = setting(
        None, "Users, roles and their policies, JSON (docs/access.md).", parse=Path, shown="none"
    )
    pass_env: tuple[str, ...] = setting(
        (),
        "AWS variable that models' processes may see, e.g. `AWS_PROFILE`; may be given several times. Behind an "
        "endpoint they see none but the region's.",
        shown="none",
        many=True,
    )
    access_log: str = setting(
        "on", "A line for each request to an endpoint: `on` or `off`.", parse=one_of(("on", "off"))
    )
    emf_namespace: str | None = setting(
        None,
        "Write CloudWatch's Embedded Metric Format to the log once a minute, under this namespace.",
        shown="no",
    )
    model_root: tuple[Path, ...] = setting(
        (Path("/opt/ml/models"), Path("/opt/ml/model")),
        "Folder that model urls must lie under; may be given several times (in the variable, separated by `:`).",
        parse=Path,
        shown="/opt/ml/models and /opt/ml/model",
        many=True,
    )

    @property
    def has_endpoint(self) -> bool:
        """Whether it does what SageMaker does around a container."""
        return self.models is not None or self.state_dir is not None

    @classmethod
    def build(cls, flags: Mapping[str, Any], environ: Mapping[str, str]) -> Config:
        """Flags win over POLYHOST_ variables, these over the platform's, these over defaults."""
        values = {}
        for field in dataclasses.fields(cls):
            texts = flags.get(field.name)
            source = flag_of(field)
            if not texts:
                source, texts = _from_environ(field, environ)
            if not texts:
                continue
            values[field.name] = _parsed(field, source, texts)
        return cls(**values)


def flag_of(field: dataclasses.Field[Any]) -> str:
    return "--" + field.name.replace("_", "-")


def variable_of(field: dataclasses.Field[Any]) -> str:
    return "POLYHOST_" + field.name.upper()


def _from_environ(field: dataclasses.Field[Any], environ: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    for variable in (variable_of(field), *field.metadata["also"]):
        text = environ.get(variable, "")
        if text:
            return variable, tuple(text.split(":")) if field.metadata["many"] else (text,)
    return "", ()


def _parsed(field: dataclasses.Field[Any], source: str, texts: tuple[str, ...]) -> Any:
    try:
        values = tuple(field.metadata["parse"](text) for text in texts)
    except ValueError as error:
        raise InvalidSetting(f"{source}: {error}.") from error
    return values if field.metadata["many"] else values[-1]


def settings_table() -> str:
    """All settings as a Markdown table: the contents of docs/settings.md."""
    lines = ["| flag | environment variable | default | what it does |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(Config):
        meta = field.metadata
        variables = ", ".join(f"`{name}`" for name in (variable_of(field), *meta["also"]))
        default = meta["shown"] or f"`{field.default}`"
        lines.append(f"| `{flag_of(field)}` | {variables} | {default} | {meta['words']} |")
    return "\n".join(lines) + "\n"
