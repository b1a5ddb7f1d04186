"""
What operations of AWS's services take, as AWS has written it down: botocore's models of them.

The models are large, so that one is read when its first request comes, and only what our operations need is kept.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SHAPES_OF_SHAPES = ("member", "key", "value")
# botocore's lists say what AWS rents out on the day of its release. Here it is words only: any of that form will do.
_OPEN_ENUMS = {"ProductionVariantInstanceType": r"ml\.[a-z0-9-]+\.[a-z0-9-]+"}
_LARGEST = {"integer": 2**31 - 1, "long": 2**63 - 1, "float": 3.4e38, "double": 1.7e308, "timestamp": 253402300799}
# Of times: the first day that Python has. What is earlier, botocore cannot read.
_FIRST_MOMENT = -62135596800
# Where models, the data of jobs and what is captured may lie: at home also in a folder.
_URLS = frozenset(("Url", "S3ModelUri", "S3Uri", "DestinationS3Uri"))
_OWN_URL = re.compile(r"(file://)?/.*", re.DOTALL)
_CLASSES = (
    (r"\p{L}", r"\w"),
    (r"\p{N}", r"\d"),
    (r"\p{Z}", r"\s"),
    (r"\p{Print}", r"[^\x00-\x1f\x7f]"),
    # To Java, a character beyond 16 bits is two.
    (r"\uD800\uDC00-\uDBFF\uDFFF", r"\U00010000-\U0010ffff"),
)


@dataclass(frozen=True)
class Service:
    """`name` is boto3's; of its operations, those that are here."""

    name: str
    operations: tuple[str, ...]

    def input_shape(self, operation: str) -> Any:
        """What one of `operations` takes, as botocore's shape. Takes 0.2 s the first time."""
        return _service(self).operation_model(operation).input_shape

    def faults(self, operation: str, parameters: Mapping[str, Any]) -> str:
        """What is wrong with a request for one of `operations`, in AWS's words; "" if nothing is."""
        from botocore.validate import ParamValidator

        shape = self.input_shape(operation)
        # Before botocore reads them, in many forms and some of them without end.
        times = [_violations(parameters[name], shape.members[name], _lower(name)) for name in _times(shape, parameters)]
        found = list(itertools.chain(*times))
        if found:
            return _report(found)
        report = ParamValidator().validate(parameters, shape)
        if report.has_errors():
            return str(report.generate_report())
        found = list(_violations(parameters, shape, ""))
        return _report(found) if found else ""


def _times(shape: Any, parameters: Mapping[str, Any]) -> list[str]:
    """All are members of requests themselves."""
    return [name for name, member in shape.members.items() if member.type_name == "timestamp" and name in parameters]


def _report(found: Sequence[str]) -> str:
    plural = "s" if len(found) > 1 else ""
    return f"{len(found)} validation error{plural} detected: {'; '.join(found)}"


@functools.cache
def _service(service: Service) -> Any:
    from botocore.loaders import Loader
    from botocore.model import ServiceModel

    whole = Loader().load_service_model(service.name, "service-2")
    shapes: dict[str, Any] = {}
    operations = {
        name: {key: whole["operations"][name][key] for key in ("name", "http", "input")} for name in service.operations
    }
    for operation in operations.values():
        _collect(operation["input"]["shape"], whole["shapes"], shapes)
    return ServiceModel({"metadata": whole["metadata"], "operations": operations, "shapes": shapes})


def _collect(name: str, every_shape: Mapping[str, Any], to: dict[str, Any]) -> None:
    if name in to:
        return
    shape = to[name] = {key: value for key, value in every_shape[name].items() if key != "documentation"}
    for member in (*shape.get("members", {}).values(), *(shape[key] for key in _SHAPES_OF_SHAPES if key in shape)):
        _collect(member["shape"], every_shape, to)


def _violations(value: Any, shape: Any, path: str, *, is_secret: bool = False) -> Iterator[str]:
    """What botocore, made for clients, leaves to the service: longest, largest, enumerations and patterns."""
    violated = _violated(value, shape)
    if violated:
        yield f"{_shown(value, is_secret)} at '{path}' failed to satisfy constraint: Member must {violated}"
    elif shape.type_name == "structure":
        for name, item in value.items():
            yield from _violations(item, shape.members[name], f"{path}.{_lower(name)}" if path else _lower(name))
    elif shape.type_name == "list":
        for number, item in enumerate(value, 1):
            yield from _violations(item, shape.member, f"{path}.{number}.member")
    elif shape.type_name == "map":
        for key, item in value.items():
            yield from _violations(key, shape.key, f"{path}.key")
            # The only maps are of environment variables.
            yield from _violations(item, shape.value, f"{path}.{key}.value", is_secret=True)


def _violated(value: Any, shape: Any) -> str:
    match shape.type_name:
        case "integer" | "long" | "float" | "double" | "timestamp":
            # To Python, and so to botocore, a boolean is a number; to botocore some texts are times.
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                return "be a number"
            most = shape.metadata.get("max", _LARGEST[shape.type_name])
            if shape.type_name == "timestamp" and value < _FIRST_MOMENT:
                return f"have value greater than or equal to {_FIRST_MOMENT}"
            return f"have value less than or equal to {most}" if value > most else ""
        case "string":
            return _violated_by_text(value, shape)
        case "list" | "map":
            most = shape.metadata.get("max")
            return f"have length less than or equal to {most}" if most is not None and len(value) > most else ""
        case _:
            return ""


def _violated_by_text(value: str, shape: Any) -> str:
    most = shape.metadata.get("max")
    if most is not None and len(value) > most:
        return f"have length less than or equal to {most}"
    if shape.name in _OPEN_ENUMS:
        return _mismatch(value, _OPEN_ENUMS[shape.name])
    if shape.name in _URLS and _OWN_URL.fullmatch(value):
        return ""
    if shape.enum and value not in shape.enum:
        return f"satisfy enum value set: [{', '.join(shape.enum)}]"
    pattern = shape.metadata.get("pattern")
    return _mismatch(value, pattern) if pattern else ""


def _mismatch(value: str, pattern: str) -> str:
    return "" if _compiled(pattern).fullmatch(value) else f"satisfy regular expression pattern: {pattern}"


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    r"""Java's classes of characters in Python's: `\w` is every alphabet's."""
    for java, python in _CLASSES:
        pattern = pattern.replace(java, python)
    return re.compile(pattern)


def _lower(name: str) -> str:
    return name[:1].lower() + name[1:]


def _shown(value: Any, is_secret: bool) -> str:
    if is_secret or not isinstance(value, (str, int, float)):
        return "Value"
    text = str(value)
    return f"Value '{text if len(text) <= 200 else text[:200] + '…'}'"
