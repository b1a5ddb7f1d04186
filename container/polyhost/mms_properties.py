"""
MMS's configuration: the properties file, `$$NAME$$` references, what the command line and `MMS_` variables
override, in MMS's order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from polyhost.errors import InvalidSetting
from polyhost.limits import with_overrides

HONOURED = frozenset(
    (
        "blacklist_env_vars", "decode_input_request", "default_response_timeout", "default_response_timeout_seconds",
        "default_service_handler", "default_workers_per_model", "enable_envvars_config", "inference_address",
        "job_queue_size", "load_models", "management_address", "max_request_size", "max_response_size", "model_store",
        "preload_model",
    )
)  # fmt: skip
# They tune the JVM and what runs in it. There is none: nothing is lost.
NEEDLESS = frozenset(
    (
        "async_logging", "io_ratio", "netty_client_threads", "number_of_netty_threads", "prefer_direct_buffer",
        "use_native_io", "vmargs",
    )
)  # fmt: skip
# Known, and not here.
_ABSENT = frozenset(
    (
        "certificate_file", "cors_allowed_headers", "cors_allowed_methods", "cors_allowed_origin", "debug", "keystore",
        "keystore_pass", "keystore_type", "number_of_gpu", "private_key_file",
        "unregister_model_timeout",
    )
)  # fmt: skip
_VARIABLES = frozenset(f"MMS_{name.upper()}" for name in HONOURED | NEEDLESS | _ABSENT)

_REFERENCE = re.compile(r"\$\$([^$]+)\$\$")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)")
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_PAIR = re.compile(r"((?:\\.|[^\\=:\s])*)\s*[=:]?\s*(.*)", re.DOTALL)


def mms_properties(
    config_file: str, model_store: str, models: Sequence[str], environ: Mapping[str, str],
) -> dict[str, str]:  # fmt: skip
    """
    All of MMS's configuration.

    MMS_CONFIG_FILE wins over `config_file`, and a file that is not there is an empty one. Raises InvalidSetting.
    """
    file = Path(environ.get("MMS_CONFIG_FILE") or config_file)
    text = file.read_text(encoding="latin-1") if file.is_file() else ""
    properties = {name: _resolved(name, value, environ) for name, value in parsed(text).items()}
    if model_store:
        properties["model_store"] = model_store
    if models:
        properties["load_models"] = ",".join(models)
    if properties.get("enable_envvars_config", "").lower() == "true":
        properties = with_overrides(properties, {name: text for name, text in environ.items() if name in _VARIABLES})
    return properties


def without_effect(properties: Mapping[str, str]) -> list[str]:
    """Names of what someone has set and will miss."""
    return sorted(properties.keys() - HONOURED - NEEDLESS)


def parsed(text: str) -> dict[str, str]:
    """The format of java.util.Properties."""
    pairs: dict[str, str] = {}
    for line in _logical_lines(text):
        match = _PAIR.fullmatch(line)
        assert match is not None  # both parts may be empty
        pairs[_unescaped(match[1])] = _unescaped(match[2])
    return pairs


def _logical_lines(text: str) -> Iterator[str]:
    """Comments and empty lines left out; a line whose last backslash is not itself escaped goes on in the next."""
    begun = ""
    for raw in text.splitlines():
        line = raw.lstrip()
        if not begun and (not line or line[0] in "#!"):
            continue
        if (len(line) - len(line.rstrip("\\"))) % 2:
            begun += line[:-1]
            continue
        # MMS's numbers do not bear the blanks at a line's end that java.util.Properties keeps.
        yield (begun + line).rstrip()
        begun = ""
    if begun:
        yield begun


def _unescaped(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        escaped = match[1]
        return chr(int(escaped[1:], 16)) if len(escaped) > 1 else _CONTROLS.get(escaped, escaped)

    return _ESCAPE.sub(character, text)


def _resolved(name: str, value: str, environ: Mapping[str, str]) -> str:
    def variable(match: re.Match[str]) -> str:
        if match[1] not in environ:
            raise InvalidSetting(f"{name}: {value} asks for the environment variable {match[1]}, which is not set.")
        return environ[match[1]]

    return _REFERENCE.sub(variable, value)
