"""
DataProcessing of a transform job: what of a record goes to the model, and what of it and of the answer comes out.

Paths are the part of JSONPath that SageMaker takes: `$`, `.name`, `['name', 'name']`, `[0, -1]`, `[1:]`, `*`. A path
to one place gives its value, any other a list, or an object of the names. Pure.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_CSV, _JSON, _JSON_LINES = "text/csv", "application/json", "application/jsonlines"
_NAME = r"'[^']*'|\"[^\"]*\""
_STEP = re.compile(
    rf"\.(?P<name>[^\W\d][\w-]*)"
    rf"|\.?\[\s*(?P<names>(?:{_NAME})(?:\s*,\s*(?:{_NAME}))*)\s*\]"
    r"|\[\s*(?P<indices>-?\d+(?:\s*,\s*-?\d+)*)\s*\]"
    r"|\[\s*(?P<start>-?\d*)\s*:\s*(?P<end>-?\d*)\s*\]"
    r"|(?P<all>\.\*|\[\s*\*\s*\])"
)
# Python's own limit is 128 KiB: a payload has its own.
csv.field_size_limit(100 * 1024**2)
_INPUT, _OUTPUT = "SageMakerInput", "SageMakerOutput"


class BadRecord(Exception):
    """A sentence without its final dot."""


@dataclass(frozen=True)
class Path:
    """Each of `steps`: names of members (text), places in a list (numbers), a slice, or None for all."""

    text: str
    steps: tuple[tuple[str, ...] | tuple[int, ...] | slice | None, ...]

    def of(self, value: Any) -> Any:
        """Raises BadRecord where there is no such place."""
        try:
            return _followed(value, self.steps)
        except (LookupError, TypeError):
            raise BadRecord(f"{self.text} leads to nothing in it") from None


def path_of(text: str, field: str) -> Path:
    """Raises ValueError."""
    steps: list[Any] = []
    at = 1
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None or (steps and _names_several(steps[-1])):
            break
        steps.append(_step_of(match))
        at = match.end()
    if not text.startswith("$") or at < len(text):
        raise ValueError(
            f"DataProcessing.{field} '{text}' is not understood: use $ with .name, ['name', 'name'], [0, -1], [1:] or *"
        )
    return Path(text, tuple(steps))


def _step_of(match: re.Match[str]) -> tuple[str, ...] | tuple[int, ...] | slice | None:
    if match["name"]:
        return (match["name"],)
    if match["names"]:
        return tuple(name[1:-1] for name in re.findall(_NAME, match["names"]))
    if match["indices"]:
        return tuple(int(index) for index in match["indices"].split(","))
    if match["all"]:
        return None
    return slice(*(int(end) if end else None for end in (match["start"], match["end"])))


def _names_several(step: object) -> bool:
    return isinstance(step, tuple) and len(step) > 1 and isinstance(step[0], str)


def _followed(value: Any, steps: Sequence[Any]) -> Any:
    """Raises LookupError, TypeError."""
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    if _names_several(step):
        return {name: _member(value, name) for name in step}
    if isinstance(step, tuple) and len(step) == 1:
        return _followed(_member(value, step[0]), rest)
    return [_followed(item, rest) for item in _items(value, step)]


def _member(value: Any, place: str | int) -> Any:
    if isinstance(place, str) and isinstance(value, dict):
        return value[place]
    if isinstance(place, int) and isinstance(value, list):
        return value[place]
    raise TypeError


def _items(value: Any, step: tuple[int, ...] | slice | None) -> list[Any]:
    if step is None and isinstance(value, dict):
        return list(value.values())
    if not isinstance(value, list):
        raise TypeError
    if isinstance(step, tuple):
        return [value[index] for index in step]
    return value if step is None else value[step]


@dataclass(frozen=True)
class Form:
    """How records are read and written: `read` raises ValueError."""

    name: str
    read: Callable[[bytes], Any]
    write: Callable[[Any], bytes]


def _read_row(record: bytes) -> list[str]:
    try:
        return next(csv.reader([record.decode()], strict=True), [])
    except csv.Error as error:
        raise ValueError(str(error)) from error


def _written_row(value: Any) -> bytes:
    row = io.StringIO()
    csv.writer(row, lineterminator="").writerow(value if isinstance(value, list) else [value])
    return row.getvalue().encode()


def _written_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


_ROWS, _DOCUMENTS = Form("CSV", _read_row, _written_row), Form("JSON", json.loads, _written_json)
_FORMS: Mapping[str, Form] = {_CSV: _ROWS, _JSON: _DOCUMENTS, _JSON_LINES: _DOCUMENTS}


@dataclass(frozen=True)
class Filters:
    taken: Form
    given: Form
    input_path: Path
    output_path: Path
    joins: bool
    # Whether each line of what is not split is a record.
    is_by_line: bool

    def request(self, record: bytes) -> bytes:
        """What the model is sent of a record. Raises BadRecord."""
        if not self.input_path.steps:
            return record
        return self.taken.write(self.input_path.of(_read(self.taken, record, "the record")))

    def result(self, record: bytes, answer: bytes) -> bytes:
        """What comes out for a record. Raises BadRecord."""
        value = _read(self.given, answer, "the model's answer")
        if self.joins:
            value = self._joined(_read(self.taken, record, "the record"), value)
        return self.given.write(self.output_path.of(value))

    def _joined(self, record: Any, answer: Any) -> Any:
        """As SageMaker joins them: rows by their columns, documents by a member of the record."""
        if self.given is _ROWS:
            return [*record, *answer]
        if isinstance(record, dict):
            return {**record, _OUTPUT: answer}
        return {_INPUT: record, _OUTPUT: answer}


def _read(form: Form, record: bytes, what: str) -> Any:
    try:
        return form.read(record)
    except (ValueError, RecursionError):
        raise BadRecord(f"{what} is not {form.name}: {record[:100]!r}") from None


def filters_of(input_filter: str, output_filter: str, content_type: str, accept: str, *, joins: bool) -> Filters:
    """Raises ValueError."""
    taken, given = _form_of(content_type), _form_of(accept)
    if taken is None or given is None:
        raise ValueError(
            "DataProcessing needs TransformInput.ContentType and TransformOutput.Accept, each one of "
            f"{', '.join(_FORMS)}"
        )
    if joins and taken is not given:
        raise ValueError("JoinSource Input needs a ContentType and an Accept of the same form, CSV or JSON")
    return Filters(
        taken, given, path_of(input_filter, "InputFilter"), path_of(output_filter, "OutputFilter"), joins=joins,
        is_by_line=_media_type(content_type) != _JSON,
    )  # fmt: skip


def _form_of(media_type: str) -> Form | None:
    return _FORMS.get(_media_type(media_type))


def _media_type(value: str) -> str:
    return value.partition(";")[0].strip().lower()
