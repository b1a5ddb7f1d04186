"""
Every setting, written once: its default, its unit, its words.

Options, environment variables, the names in a settings file and the tables in docs/settings.md follow from the fields.
A Config is built once, frozen, and passed down. Nothing else reads the settings' variables.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyhost_handlers.environments.definitions import canonical, is_name

from polyhost.errors import InvalidSetting
from polyhost.http_limits import HttpLimits, Rate
from polyhost.settings_file import InFile, read_settings

ENGINES = ("native", "mms")
LOG_FORMATS = ("text", "json")
AUTHS = ("off", "sigv4")
# `shared` is for many small scripts: one takes 0.8 MB so, and 6 MB in a process of its own.
ISOLATIONS = ("auto", "shared", "process")
IMPORTS = ("early", "late")
# What the hardened mode takes from models' processes.
RESTRICTIONS = ("files", "signals", "network", "syscalls", "limits", "workers")

# Requests of a caller: more is no limit.
MOST_PER_SEC = 1_000_000
# One request in a day or so. Of less, the time to wait for the next one is soon no number.
LEAST_PER_SEC = 1e-5
# On one port.
MOST_FRONTS = 64
_SAGEMAKERS_DRAIN_SECS = 25
_SWITCH = {"on": True, "true": True, "1": True, "yes": True, "off": False, "false": False, "0": False, "no": False}
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """`1.5GiB`, `800m` or `1073741824` in bytes; units are powers of 1024. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"'{text}' is not a size: write for example 800MiB or 4GiB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def parse_size(text: str) -> int:
    """As parse_bytes, at least 1 byte."""
    size = parse_bytes(text)
    if size < 1:
        raise ValueError(f"'{text}' is not a size of at least 1 byte")
    return size


def parse_port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise ValueError(f"'{text}' is not a port: use 1 to 65535")
    return int(text)


def parse_count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"'{text}' is not a number of at least 1")
    return int(text)


def parse_fronts(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= MOST_FRONTS:
        raise ValueError(f"'{text}' is not a number from 1 to {MOST_FRONTS}")
    return int(text)


def parse_secs(text: str) -> float:
    try:
        secs = float(text)
    except ValueError:
        secs = -1.0
    if not 0 <= secs < 1e9:
        raise ValueError(f"'{text}' is not a number of seconds: write for example 60 or 2.5")
    return secs


def parse_rate(text: str) -> Rate:
    """`RATE` or `RATE:BURST`. A burst that is not given is what a second brings."""
    per_sec, _, burst = text.partition(":")
    try:
        rate = Rate(float(per_sec), int(burst) if burst else max(1, math.ceil(float(per_sec))))
    except (ValueError, OverflowError):
        rate = Rate(0.0, 0)
    if not (LEAST_PER_SEC <= rate.per_sec <= MOST_PER_SEC and 1 <= rate.burst <= MOST_PER_SEC):
        raise ValueError(f"'{text}' is not a rate: write the requests per second, as 10, or with a burst, as 10:50")
    return rate


def parse_models(text: str) -> str:
    """`s3://bucket/prefix/` or a folder, with its final slash."""
    if text.startswith("s3://"):
        if not re.match(r"s3://[^/]+", text):
            raise ValueError(f"'{text}' names no bucket: write s3://BUCKET/PREFIX/")
    elif "://" in text:
        raise ValueError(f"'{text}' is neither s3://BUCKET/PREFIX/ nor a folder: write one of them")
    else:
        if Path(text).is_file():
            raise ValueError(f"'{text}' is a file: name the folder that it lies in")
        if not Path(text).is_dir():
            raise ValueError(f"there is no folder '{text}': make it, or name another")
        text = str(Path(text).resolve())
    return text.rstrip("/") + "/"


def parse_state(text: str) -> str:
    """With its final slash."""
    if not re.match(r"s3://[^/]+", text):
        raise ValueError(f"'{text}' names no bucket: write s3://BUCKET/PREFIX/")
    return text.rstrip("/") + "/"


def parse_endpoint_name(text: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", text):
        raise ValueError(f"'{text}' is not an endpoint's name: letters, digits and hyphens, 63 at most")
    return text


def parse_server_name(text: str) -> str:
    """It stands in a header field."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,253}", text):
        raise ValueError(f"'{text}' is not a server's name: letters, digits, dots, hyphens and underscores")
    return text


def parse_origin(text: str) -> str:
    """As browsers write it: small letters, no default port, no path."""
    origin = text.lower().rstrip("/")
    if not re.fullmatch(r"https?://[^/?#@\s]+", origin):
        raise ValueError(f"'{text}' is not an origin: write http://HOST:PORT or https://HOST")
    default_port = ":443" if origin.startswith("https") else ":80"
    return origin.removesuffix(default_port)


def one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"'{text}' is none of {', '.join(choices)}: choose one of them")
        return text

    return parse


def parse_handler(text: str) -> str:
    """`auto`, a kind such as `xgboost`, `package.module`, `module:function` or `/dir/file.py:function`."""
    if not re.fullmatch(r"[\w./-]+(:\w+)?", text):
        raise ValueError(f"'{text}' is not a handler: write a kind, module:function or /dir/file.py:function")
    return text


def parse_switch(text: str) -> bool:
    if text.lower() not in _SWITCH:
        raise ValueError(f"'{text}' is neither on nor off: write one of them")
    return _SWITCH[text.lower()]


def parse_environment(text: str) -> str:
    if not is_name(text):
        raise ValueError(f"'{text}' is not the name of a Python environment: write a name such as sklearn-1.2")
    return canonical(text)


def setting(
    default: Any,
    words: str,
    *,
    parse: Callable[[str], Any] = str,
    choices: tuple[str, ...] = (),
    metavar: str = "",
    also: tuple[str, ...] = (),
    shown: str | None = None,
    many: bool = False,
    separator: str = ":",
) -> Any:
    """
    A field of Config.

    `words`: a sentence in the imperative. `choices`: the only values that it takes. `metavar`: what stands for its
    value in the help, where neither `choices` nor `parse` tells it. `also`: environment variables that count after the
    setting's own. `shown`: the default in words. `many`: it may be given several times, in its variable with
    `separator` between the values.
    """
    metadata = {
        "words": words, "parse": one_of(choices) if choices else parse, "choices": choices, "also": also,
        "metavar": f"[{'|'.join(choices)}]" if choices else metavar or _METAVARS.get(parse, "TEXT"),
        "shown": shown, "many": many, "separator": separator,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


# What stands for a value of this kind in the help.
_METAVARS: Mapping[Callable[[str], Any], str] = {
    parse_bytes: "SIZE", parse_size: "SIZE", parse_port: "PORT", parse_count: "N", parse_fronts: "N",
    parse_secs: "SECONDS", parse_endpoint_name: "NAME", parse_server_name: "NAME", parse_environment: "NAME",
    parse_origin: "ORIGIN", parse_handler: "HANDLER", Path: "FILE",
    parse_models: "FOLDER|s3://BUCKET/PREFIX/", parse_state: "s3://BUCKET/PREFIX/",
}  # fmt: skip

# The groups of the help, of docs/settings.md, and the tables of a settings file: `ServerSettings` is `[server]`.


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    config: Path | None = setting(
        None,
        "Read settings from this TOML file (docs/settings.md).",
        parse=Path,
        shown="none",
    )
    host: str = setting("127.0.0.1", "Listen on this address. The image listens on 0.0.0.0.", metavar="ADDRESS")
    port: int = setting(
        8080, "Listen on this port for all requests by HTTP.", parse=parse_port, also=("SAGEMAKER_BIND_TO_PORT",)
    )
    grpc_port: int | None = setting(
        None,
        "Listen on this port for the Open Inference Protocol by gRPC (docs/open-inference-protocol.md).",
        parse=parse_port,
        shown="no gRPC",
    )
    fronts: int | None = setting(
        None,
        "Let this many processes take requests, the server's own among them (docs/native-engine.md).",
        parse=parse_fronts,
        shown="one for every two CPUs, 16 at most; 1 with `--hardened` or the engine `mms`",
    )
    tls_cert: Path | None = setting(
        None, "Serve HTTPS with the certificate in this file, PEM, with its chain.", parse=Path, shown="no TLS"
    )
    tls_key: Path | None = setting(
        None, "Read the certificate's key from this file, PEM.", parse=Path, shown="the file of `--tls-cert`"
    )
    # Docker kills ten seconds after it has asked to stop, SageMaker thirty.
    drain_secs: int = setting(
        8,
        "Let requests in flight take this long after SIGTERM. A second signal ends the server at once.",
        parse=parse_count,
        metavar="SECONDS",
        shown="8; 25 where `SAGEMAKER_MULTI_MODEL` is set",
    )
    log_format: str = setting("text", "Write the log as text, or as one JSON object a line.", choices=LOG_FORMATS)
    access_log: str = setting("on", "Write a line for each request to an endpoint.", choices=("on", "off"))
    traces: str = setting(
        "off",
        "Send OpenTelemetry's traces of calls to an endpoint; OTEL_EXPORTER_OTLP_ENDPOINT says where to.",
        choices=("otlp", "off"),
    )
    emf_namespace: str | None = setting(
        None,
        "Write CloudWatch's Embedded Metric Format to the log once a minute, under this namespace.",
        metavar="NAME",
        shown="none",
    )


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    models: str | None = setting(
        None,
        "Serve a multi-model endpoint of the `model.tar.gz` archives in this folder or bucket. Each is loaded when it "
        "is first called.",
        parse=parse_models,
        shown="none; models are loaded by `POST /models`",
    )
    endpoint_name: str = setting("polyhost", "Give the endpoint of `--models` this name.", parse=parse_endpoint_name)
    preload: tuple[str, ...] = setting(
        (),
        "Load this target model at the start, and never evict it. `@FILE` names a file with one target a line.",
        metavar="TARGET|@FILE",
        shown="none",
        many=True,
    )
    endpoints: Path | None = setting(
        None,
        "Read models, endpoint configurations and endpoints from this file, YAML or JSON (docs/control-plane.md). It "
        "is read again when it changes. Calls then change none of them.",
        parse=Path,
        shown="none",
    )
    state_dir: Path | None = setting(
        None,
        "Keep in this folder what outlives a restart: the endpoints that clients make, and the cache. Without "
        "`--models`, there are no other endpoints than these.",
        parse=Path,
        metavar="FOLDER",
        shown="`~/.local/state/polyhost/` and the endpoint's name",
    )


@dataclass(frozen=True, kw_only=True)
class ModelsSettings:
    engine: str = setting(
        "native",
        "Run models in `native`, our own engine, or in `mms`, the real Multi Model Server behind our front, which "
        "needs Java. The image `polyhost:mms` sets `mms`.",
        choices=ENGINES,
    )
    handler: str = setting(
        "auto",
        "Serve models that bring no handler with this one: `auto` looks into each archive; a kind such as `xgboost`; "
        "`module:function`; `/dir/file.py:function`.",
        parse=parse_handler,
    )
    environment: str | None = setting(
        None,
        "Run the models that it can serve in this named Python environment, e.g. `sklearn-1.2` (docs/environments.md). "
        "A container's Environment or an archive may name another.",
        parse=parse_environment,
        also=("POLYHOST_HANDLER_ENVIRONMENT",),
        shown="what each image and archive tells",
    )
    environments_folder: Path | None = setting(
        None,
        "Find the named Python environments in this folder, where `polyhost env build` makes them.",
        parse=Path,
        metavar="FOLDER",
        also=("POLYHOST_ENVIRONMENTS",),
        shown="`envs` beside the server's own packages",
    )
    build_environments: bool = setting(
        False,
        "Build the named Python environment that a model needs, if it is missing (docs/build-environments.md). "
        "Meanwhile, requests for the model are answered 429.",
        parse=parse_switch,
        shown="off",
    )
    workers_per_model: int | None = setting(
        None,
        "Start this many workers for each model when it is loaded.",
        parse=parse_count,
        also=("SAGEMAKER_MODEL_SERVER_WORKERS",),
        shown="1; in single-model mode one per CPU",
    )
    model_root: tuple[Path, ...] = setting(
        (Path("/opt/ml/models"), Path("/opt/ml/model")),
        "Refuse model urls that are not below this folder.",
        parse=Path,
        metavar="FOLDER",
        shown="/opt/ml/models and /opt/ml/model",
        many=True,
    )


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    memory_budget: int | None = setting(
        None,
        "Use this much memory for models, e.g. `4GiB`. When it is full, an endpoint unloads models; a server "
        "without endpoints answers 507.",
        parse=parse_bytes,
        shown="80 % of the container's, the systemd unit's or the machine's memory, less what the idle server uses",
    )
    disk_budget: int | None = setting(
        None,
        "Use this much disk for unpacked archives, e.g. `50GiB`. When it is full, the least recently used are deleted, "
        "those of models in memory last.",
        parse=parse_bytes,
        shown="80 % of what is free at the start",
    )
    cache_dir: Path | None = setting(
        None, "Unpack archives in this folder.", parse=Path, metavar="FOLDER", shown="`cache` in the state folder"
    )
    refresh_secs: float = setting(
        60.0,
        "When a model in memory is called, look whether its archive was overwritten or deleted, at most once in this "
        "time. With 0, look only at `POST /refresh`.",
        parse=parse_secs,
    )
    model_ready_timeout_secs: float = setting(
        55.0,
        "Let a request wait this long for its model's load, then answer ModelNotReadyException. The load goes on.",
        parse=parse_secs,
    )
    model_load_timeout_secs: float = setting(
        360.0, "Let fetching and loading a model take this long.", parse=parse_secs
    )
    unpack_timeout_secs: float = setting(300.0, "Let unpacking a model's archive take this long.", parse=parse_secs)


@dataclass(frozen=True, kw_only=True)
class AccessSettings:
    auth: str = setting(
        "off",
        "Let everybody call (`off`), or only those in `--auth-file`, by signatures or API keys (`sigv4`).",
        choices=AUTHS,
    )
    auth_file: Path | None = setting(
        None,
        "Read users, their keys, roles and policies from this JSON file (docs/security.md).",
        parse=Path,
        shown="none",
    )
    rate_limit: Rate | None = setting(
        None,
        "Let each caller make RATE requests per second, and BURST at once after a pause, e.g. `10` or `10:50` "
        "(docs/rate-limits.md). More are answered 429.",
        parse=parse_rate,
        metavar="RATE[:BURST]",
        shown="none",
    )
    token_key_file: Path | None = setting(
        None,
        "Sign session tokens and logins with this file of at least 32 random bytes. Servers with the same file accept "
        "each other's.",
        parse=Path,
        shown="one that the server makes in its state folder",
    )
    allowed_origin: tuple[str, ...] = setting(
        (),
        "Let web pages of this origin, e.g. `https://models.example`, call a server that has an endpoint and no "
        "`--auth`. Name the address of a proxy in front, too.",
        parse=parse_origin,
        shown="the server's own",
        many=True,
        separator=" ",
    )


@dataclass(frozen=True, kw_only=True)
class IsolationSettings:
    isolation: str = setting(
        "auto",
        "Choose which models share processes: with `auto`, those that bring no code and that our handlers serve; with "
        "`shared`, all; with `process`, none. Engine `native`.",
        choices=ISOLATIONS,
    )
    import_frameworks: str = setting(
        "early",
        "Import the frameworks once for all processes, at the start (`early`); or with the first model of data, while "
        "models that bring code import what they need in their own processes (`late`). Engine `native`.",
        choices=IMPORTS,
    )
    pass_env: tuple[str, ...] = setting(
        (),
        "Let models behind an endpoint see this variable of the server's environment, e.g. `https_proxy` "
        "(docs/security.md).",
        metavar="VARIABLE",
        shown="none",
        many=True,
    )
    hardened: bool = setting(
        False,
        "Confine models' processes, so that a hostile model harms no other (docs/security.md). Pickles get a "
        "process each. Engine `native`.",
        parse=parse_switch,
        shown="off",
    )
    hardened_without: tuple[str, ...] = setting(
        (), "Leave out this restriction of `--hardened`.", choices=RESTRICTIONS, shown="none", many=True
    )
    hardened_read: tuple[Path, ...] = setting(
        (),
        "Let models read this file or folder with `--hardened`, too.",
        parse=Path,
        metavar="PATH",
        shown="none",
        many=True,
    )


@dataclass(frozen=True, kw_only=True)
class LimitsSettings:
    max_request_line_bytes: int = setting(
        HttpLimits.max_request_line_bytes,
        "Answer 414 to a longer request line.",
        parse=parse_size,
    )
    max_header_bytes: int = setting(
        HttpLimits.max_header_bytes,
        "Answer 431 to a larger request header.",
        parse=parse_size,
    )
    max_header_fields: int = setting(
        HttpLimits.max_header_fields,
        "Answer 431 to a request with more header fields.",
        parse=parse_count,
    )
    max_connections: int = setting(
        HttpLimits.max_connections,
        "Let this many clients be connected, also in TLS handshakes, and answer 503 to others.",
        parse=parse_count,
    )
    keep_alive_secs: float = setting(
        HttpLimits.keep_alive_secs,
        "Close a connection that is idle for this long, or whose client takes less than 64 KiB of its answer in this "
        "time. Choose a longer time than clients and load balancers have.",
        parse=parse_secs,
    )
    header_timeout_secs: float = setting(
        HttpLimits.header_timeout_secs,
        "Answer 408 when a request's header takes longer than this to arrive. TLS handshakes have the same time.",
        parse=parse_secs,
    )
    body_timeout_secs: float = setting(
        HttpLimits.body_timeout_secs,
        "Answer 408 when a request's body takes longer than this to arrive. Raise it for slow networks.",
        parse=parse_secs,
    )


@dataclass(frozen=True, kw_only=True)
class FleetSettings:
    server_name: str | None = setting(
        None,
        "Give this server a name among others. Answers of InvokeEndpoint carry it in `x-polyhost-server`, and "
        "`x-polyhost-loaded: hit` or `miss`.",
        parse=parse_server_name,
        shown="none; the dashboard shows the host's name",
    )
    state: str | None = setting(
        None,
        "Keep the endpoints that clients make below this prefix of a bucket, so that several servers serve them all. "
        "The store must have conditional writes, as S3 does.",
        parse=parse_state,
        shown="a file in the state folder, for one server",
    )
    unready_secs: float = setting(
        0.0,
        "Go on taking requests this long after SIGTERM, while `/ready` answers 503, until balancers have seen it. "
        "`--drain-secs` begins after it.",
        parse=parse_secs,
    )


# In the order in which help and docs show them.
GROUPS: tuple[type, ...] = (
    ServerSettings, EndpointSettings, ModelsSettings, CacheSettings, AccessSettings, IsolationSettings, LimitsSettings,
    FleetSettings,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config(
    ServerSettings, EndpointSettings, ModelsSettings, CacheSettings, AccessSettings, IsolationSettings, LimitsSettings,
    FleetSettings,
):  # fmt: skip
    """All settings."""

    @property
    def http_limits(self) -> HttpLimits:
        return HttpLimits(**{field.name: getattr(self, field.name) for field in dataclasses.fields(HttpLimits)})

    @property
    def has_endpoint(self) -> bool:
        """Whether it does what SageMaker does around a container."""
        return any(given is not None for given in (self.models, self.state_dir, self.endpoints, self.state))

    @classmethod
    def build(cls, flags: Mapping[str, Any], environ: Mapping[str, str]) -> Config:
        """
        Flags win over POLYHOST_ variables, these over the platform's, these over the settings file, it over defaults.

        `flags`: by the fields' names, each a sequence of texts. Raises InvalidSetting.
        """
        values: dict[str, Any] = {"drain_secs": _SAGEMAKERS_DRAIN_SECS} if environ.get("SAGEMAKER_MULTI_MODEL") else {}
        in_file = _in_file(cls.__dataclass_fields__["config"], flags, environ)
        for field in dataclasses.fields(cls):
            source, texts = _given(field, flags, environ, in_file)
            if texts:
                values[field.name] = _parsed(field, source, texts)
        return cls(**values)


def grouped() -> Iterator[tuple[str, tuple[dataclasses.Field[Any], ...]]]:
    """The groups' names and their fields: `("Server", …)`."""
    for group in GROUPS:
        yield group.__name__.removesuffix("Settings"), dataclasses.fields(group)


def flag_of(field: dataclasses.Field[Any]) -> str:
    return "--" + name_of(field)


def name_of(field: dataclasses.Field[Any]) -> str:
    """Its name in a settings file."""
    return field.name.replace("_", "-")


def variable_of(field: dataclasses.Field[Any]) -> str:
    return "POLYHOST_" + field.name.upper()


def _in_file(config: dataclasses.Field[Any], flags: Mapping[str, Any], environ: Mapping[str, str]) -> InFile:
    source, texts = _given(config, flags, environ, {})
    if not texts:
        return {}
    # A settings file names no other.
    tables = {group.lower(): [name_of(one) for one in fields if one != config] for group, fields in grouped()}
    return read_settings(_parsed(config, source, texts), tables)


def _given(
    field: dataclasses.Field[Any], flags: Mapping[str, Any], environ: Mapping[str, str], in_file: InFile
) -> tuple[str, tuple[str, ...]]:
    """Where the setting was found, and its values there: none where it is not given."""
    if texts := flags.get(field.name):
        return flag_of(field), tuple(texts)
    for variable in (variable_of(field), *field.metadata["also"]):
        if text := environ.get(variable, ""):
            return variable, tuple(text.split(field.metadata["separator"])) if field.metadata["many"] else (text,)
    return in_file.get(name_of(field), ("", ()))


def _parsed(field: dataclasses.Field[Any], source: str, texts: tuple[str, ...]) -> Any:
    try:
        values = tuple(field.metadata["parse"](text) for text in texts)
    except ValueError as error:
        raise InvalidSetting(f"{source}: {error}.") from error
    if field.metadata["many"]:
        return values
    if len(values) > 1 and not source.startswith("--"):
        raise InvalidSetting(f"{source}: write one value, not a list.")
    return values[-1]


def settings_table() -> str:
    """All settings as Markdown, a table for each group: the contents of docs/settings.md."""
    return "\n".join(_table(group, fields) for group, fields in grouped())


def _table(group: str, fields: Iterable[dataclasses.Field[Any]]) -> str:
    lines = [
        f"## {group}",
        "",
        "| option | environment variable | default | what it does |",
        "| --- | --- | --- | --- |",
    ]
    for field in fields:
        meta = field.metadata
        option = flag_of(field) if isinstance(field.default, bool) else f"{flag_of(field)} {meta['metavar']}"
        option = option.replace("|", "\\|")  # or it would end the cell
        variables = ", ".join(f"`{name}`" for name in (variable_of(field), *meta["also"]))
        default = meta["shown"] or f"`{default_of(field)}`"
        words = re.sub(r"docs/([\w-]+)\.md", r"[more](\1.md)", meta["words"])
        if meta["many"]:
            words += " May be repeated."
        lines.append(f"| `{option}` | {variables} | {default} | {words} |")
    return "\n".join(lines) + "\n"


def default_of(field: dataclasses.Field[Any]) -> str:
    """In words, or as it would be written."""
    default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
    return field.metadata["shown"] or default


def repeated(field: dataclasses.Field[Any]) -> str:
    """A sentence that says how more than one value is given, where one may."""
    if not field.metadata["many"]:
        return ""
    separator = {" ": "spaces", ":": "`:`"}[field.metadata["separator"]]
    return f" May be repeated; in the variable, separate with {separator}."
