"""
Tables as clients send them: rows, names of columns where they have any, and what a model makes of them.

`arranged` puts named columns into the model's order, `columns_of` reads each column as the kind that the model wants.
Nothing is guessed where the model knows better, and a name is honoured or refused, never dropped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from polyhost_handlers import exact
from polyhost_handlers.errors import BadInput, NoContent, Unparseable
from polyhost_handlers.exact import Misfit

# Sparse rows become dense ones: of a short body that must not take much memory, at most 80 MB. AWS's linear
# learner takes as many features at most.
MAX_SPARSE_CELLS = 10_000_000
MAX_NAMES_SHOWN = 20
# Up to where float64 has every whole number, and how long whole numbers may be that are all below.
_EXACT, _EXACT_BYTES = 2**53, 4


@dataclass(frozen=True)
class Table:
    """Rows of fields, all of one length; `names` are those of the columns, if the body has them."""

    rows: Any  # list[list[Any]], or np.ndarray of two dimensions
    names: tuple[str, ...] | None = None
    # A list of records has names and no order: only a model that knows the names can take it.
    has_order: bool = True
    # One list without inner lists: a row of several fields, or of one field each.
    is_flat: bool = False
    # Fields of CSV are texts, whatever they look like.
    is_csv: bool = False
    # What an error calls a row, and the number of the first one.
    unit: str = "Row"
    first: int = 1

    @property
    def width(self) -> int:
        return len(self.rows[0])

    @property
    def lists(self) -> list[Any]:
        """The rows with Python's own values, where they are one array too."""
        return self.rows.tolist() if isinstance(self.rows, np.ndarray) else list(self.rows)


@dataclass(frozen=True)
class SparseRow:
    keys: list[int]
    values: list[float]
    width: int

    def __len__(self) -> int:
        return self.width


# What a column's fields are


class Kind(Protocol):
    def read(self, field: Any, is_csv: bool) -> Any:
        """A field as the model wants it; None is a missing one. Raises Misfit."""

    def is_value(self, field: str) -> bool:
        """Whether a field of CSV can be a value of this column, and not only its name."""


@dataclass(frozen=True)
class Number:
    def read(self, field: Any, is_csv: bool) -> float:  # noqa: ARG002 - a number is a number
        return exact.number(field)

    def is_value(self, field: str) -> bool:
        return is_number(field)


@dataclass(frozen=True)
class Truth:
    def read(self, field: Any, is_csv: bool) -> bool:  # noqa: ARG002 - written the same everywhere
        return exact.truth(field)

    def is_value(self, field: str) -> bool:
        try:
            exact.truth(field)
        except Misfit:
            return False
        return True


@dataclass(frozen=True)
class Text:
    """Any text; one that is missing is not taken. In CSV an empty field is an empty text."""

    def read(self, field: Any, is_csv: bool) -> str:
        return "" if field is None and is_csv else exact.text(field)

    def is_value(self, field: str) -> bool:  # noqa: ARG002
        return False


@dataclass(frozen=True)
class AsItLooks:
    """What no model declares: a field of CSV that looks like a number is one, a value of JSON is what it is."""

    def read(self, field: Any, is_csv: bool) -> Any:
        if field is None:
            return math.nan
        if isinstance(field, (list, dict)):
            raise Misfit("is no number and no text")
        if not is_csv:
            return field
        try:
            return exact.number(field)
        except Misfit:
            return field

    def is_value(self, field: str) -> bool:
        return is_number(field)


@dataclass(frozen=True)
class AsFloat(AsItLooks):
    """
    As it looks, but each number is a float64, as in the training of most models.

    JSON writes `2` for 2.0, and `numpy.reciprocal` makes 0 of a whole 2. A whole number that float64 cannot hold to its
    last digit stays one.
    """

    def read(self, field: Any, is_csv: bool) -> Any:
        value = super().read(field, is_csv)
        if isinstance(value, bool) or not isinstance(value, int):
            return value
        try:
            return float(value) if float(value) == value else value
        except OverflowError:
            return value


class Choice:
    """One of the values that an encoder has learned; another one is left to the encoder, as a value of their type."""

    def __init__(self, values: Sequence[Any], dtype: np.dtype[Any] | None = None) -> None:
        # What the encoder has learned of float32 it finds in float32 alone.
        self._float = dtype if dtype is not None and dtype.kind == "f" else np.dtype(float)
        self.known = {str(value): value for value in values if value is not None and value == value}  # noqa: PLR0124 - NaN
        self._missing = None if any(value is None for value in values) else math.nan
        # In CSV an empty text is not told from a missing one: it is what was there in the training.
        is_missing_known = len(self.known) < len(values)
        self._empty = self.known.get("", self._missing) if not is_missing_known else self._missing
        kinds = {_kind_of(value) for value in self.known.values()}
        self._kind = kinds.pop() if len(kinds) == 1 else ""

    def __repr__(self) -> str:
        return f"Choice({list(self.known.values())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def read(self, field: Any, is_csv: bool) -> Any:
        if field is None:
            return self._empty if is_csv else self._missing
        if isinstance(field, (list, dict)):
            raise Misfit("is no number and no text")
        words = exact.text(field) if not isinstance(field, (bool, float)) else str(field)
        if words in self.known:
            return self.known[words]
        if is_csv and not words.strip():
            return self._empty
        if is_csv and words.strip() in self.known:
            return self.known[words.strip()]
        if self._kind == "text":
            return exact.text(field)
        if self._kind == "truth":
            return exact.truth(field)
        if self._kind == "whole":
            return _whole_or_number(field)
        if self._kind == "number":
            with np.errstate(over="ignore"):
                return float(self._float.type(exact.number(field)))
        return AsItLooks().read(field, is_csv)

    @property
    def may_look_like_numbers(self) -> bool:
        """Whether a text among them is one that `AsItLooks` would take for a number, a missing one perhaps."""
        return self.is_text and any(_is_any_number(text) or not text.strip() for text in self.known)

    @property
    def is_text(self) -> bool:
        return self._kind == "text"

    @property
    def is_whole(self) -> bool:
        return self._kind == "whole"

    @property
    def datatype(self) -> str | None:
        """The Open Inference Protocol's; None where the values are of several kinds."""
        return {"text": "BYTES", "truth": "BOOL", "whole": "INT64", "number": "FP64"}.get(self._kind)

    @cached_property
    def are_floats(self) -> bool:
        """Whether all are texts that Python writes of a float64, as 1.0 is, and 1 is not."""
        return self._kind == "text" and all(_float_text(text) == text for text in self.known)

    def as_float(self, field: str) -> str | None:
        """The known text of a number as Python writes it as float64; None where there is none."""
        text = _float_text(field) if self.are_floats else None
        return text if text in self.known else None

    def is_value(self, field: str) -> bool:
        return field in self.known or (self._kind in ("whole", "number") and is_number(field))


@dataclass(frozen=True)
class Date:
    """A time as ISO 8601 writes it, of the type that an encoder has learned."""

    dtype: np.dtype[Any]

    def read(self, field: Any, is_csv: bool) -> Any:  # noqa: ARG002 - written the same everywhere
        if field is None:
            return np.datetime64("NaT").astype(self.dtype)
        if not isinstance(field, str):
            raise Misfit("is no date: write it as 2020-12-31 or 2020-12-31T23:59:59")
        try:
            return np.datetime64(field.strip()).astype(self.dtype)
        except ValueError:
            raise Misfit("is no date: write it as 2020-12-31 or 2020-12-31T23:59:59") from None

    def is_value(self, field: str) -> bool:
        try:
            self.read(field, True)
        except Misfit:
            return False
        return True


@dataclass(frozen=True)
class Missing:
    """Another kind, whose missing values are `value`."""

    kind: Kind
    value: Any

    def read(self, field: Any, is_csv: bool) -> Any:
        is_missing = field is None or (is_csv and not field.strip() and not self.kind.is_value(field))
        return self.value if is_missing else self.kind.read(field, is_csv)

    def is_value(self, field: str) -> bool:
        return self.kind.is_value(field)


@dataclass(frozen=True)
class TextOf:
    """Another kind, in a column that a model of texts is given, too."""

    kind: Kind

    def read(self, field: Any, is_csv: bool) -> Any:
        return Text().read(field, is_csv) if field is None else self.kind.read(field, is_csv)

    def is_value(self, field: str) -> bool:
        return self.kind.is_value(field)


@dataclass(frozen=True)
class BeforeFunction:
    """
    What a function may make texts of that an encoder has learned.

    A field of CSV is read as such a text. Of JSON a value stays what it is; only where all texts are float64's, such as
    `1.0`, whole numbers were float64 in the training.
    """

    kind: Kind

    def read(self, field: Any, is_csv: bool) -> Any:
        choice = self.kind.kind if isinstance(self.kind, Missing) else self.kind
        if is_csv:
            text = choice.as_float(field) if isinstance(choice, Choice) and field is not None else None
            return self.kind.read(field, is_csv) if text is None else text
        is_float = isinstance(choice, Choice) and choice.are_floats
        return (AsFloat() if is_float else AsItLooks()).read(field, is_csv)

    def is_value(self, field: str) -> bool:
        return self.kind.is_value(field)


def _float_text(text: str) -> str | None:
    try:
        return str(exact.number(text)) if text.strip() else None
    except Misfit:
        return None


def _kind_of(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "truth"
    if isinstance(value, (int, np.integer)):
        return "whole"
    return "number" if isinstance(value, (float, np.floating)) else "text"


def _whole_or_number(field: Any) -> float | int:
    if isinstance(field, int):
        return field
    try:
        return exact.whole(field, np.dtype("int64"))
    except Misfit:
        return exact.number(field)  # 7.5 is none of them, but it is a number


def has_learned_texts(kind: Kind) -> bool:
    """Whether missing values of such a column stand among texts, also where a request has no text in it."""
    if isinstance(kind, (Missing, TextOf, BeforeFunction)):
        return has_learned_texts(kind.kind)
    return isinstance(kind, Choice) and kind.is_text


def datatype_of(kind: Kind) -> str | None:
    """The Open Inference Protocol's of a column of this kind; None where it takes several, or none is known."""
    if isinstance(kind, (Missing, TextOf, BeforeFunction)):
        return datatype_of(kind.kind)
    if isinstance(kind, Choice):
        return kind.datatype
    if isinstance(kind, (Number, AsFloat)):
        return "FP64"
    return "BOOL" if isinstance(kind, Truth) else "BYTES" if isinstance(kind, (Text, Date)) else None


def example_of(kind: Kind) -> Any:
    """Some value of JSON that a column of this kind can take."""
    if isinstance(kind, (Missing, TextOf, BeforeFunction)):
        return example_of(kind.kind)
    if isinstance(kind, Choice):
        return next(iter(kind.known), None)
    return "2020-01-01" if isinstance(kind, Date) else "text" if isinstance(kind, Text) else 0


def is_number(field: str) -> bool:
    try:
        return bool(field.strip()) and not math.isnan(exact.number(field) * 0 + 1)
    except Misfit:
        return False


def _is_any_number(field: str) -> bool:
    """`nan` and `inf` too, which may stand for a missing value as well as for a name."""
    try:
        exact.number(field)
    except Misfit:
        return False
    return bool(field.strip())


@dataclass(frozen=True)
class Schema:
    """What a model knows of its columns: how many, their names, what each holds; None where it does not know."""

    width: int | None = None
    names: tuple[str, ...] | None = None
    # Where this is None, all are of the kind `otherwise`.
    kinds: tuple[Kind, ...] | None = None
    # Columns that were there in training and that the model does not look at.
    optional: frozenset[str] = frozenset()
    otherwise: Kind = Number()
    # What a sparse row does not name.
    absent: float = 0.0

    @cached_property
    def known(self) -> frozenset[str]:
        return frozenset(self.names or ())

    @cached_property
    def has_numbers_as_names(self) -> bool:
        """Rows of one or two features have the values 0 and 1 too often to be taken for names."""
        return len(self.known) > 2 and all(map(is_number, self.known))

    @property
    def is_numbers(self) -> bool:
        """Whether a number is read as one in all columns, whatever else they may hold."""
        return self.kinds is None and isinstance(self.otherwise, (Number, AsFloat))

    def kinds_for(self, width: int) -> Sequence[Kind]:
        return self.kinds if self.kinds is not None and len(self.kinds) == width else [self.otherwise] * width


def check_equal(rows: Any, unit: str, first: int = 1) -> None:
    if isinstance(rows, np.ndarray):
        return
    for number, row in enumerate(rows, first):
        if not isinstance(row, (list, SparseRow)):
            raise Unparseable(f"{unit} {number} is a {type(row).__name__}, not a list: send rows of fields.")
        if len(row) != len(rows[0]):
            raise Unparseable(
                f"{unit} {number} has {len(row)} fields, {unit.lower()} {first} has {len(rows[0])}: send equal rows.",
            )


# A table as the model wants it


def arranged(table: Table, schema: Schema) -> Table:
    """
    The table with its columns in the model's order.

    Without names, on either side, a column is known by its position. Raises BadInput for too many or too few
    columns, for names that are unknown, missing or doubled, and for records where the model knows no names.
    """
    if table.is_flat and schema.width == 1 and table.width != 1:
        return replace(table, rows=[[value] for value in table.rows[0]], is_flat=False)
    if table.names is None or (schema.names is None and table.has_order):
        if schema.width is not None and table.width != schema.width:
            raise BadInput(f"Each row has {table.width} features, the model was trained on {schema.width}.")
        return table
    doubled = [name for name, count in Counter(table.names).items() if count > 1]
    if doubled:
        raise BadInput(f"Columns are there more than once: {listed(doubled)}.")
    if schema.names is None:
        raise BadInput("The model does not know the names of its features, and JSON objects have no order: "
                       "send rows as lists, [[…], …].")  # fmt: skip
    places = {name: place for place, name in enumerate(table.names)}
    unknown = [name for name in table.names if name not in schema.known]
    missing = [name for name in schema.names if name not in places and name not in schema.optional]
    if unknown or missing:
        wrong = [f"unknown {listed(unknown)}"] if unknown else []
        wrong += [f"missing {listed(missing)}"] if missing else []
        its = listed(schema.names)
        raise BadInput(f"The columns are not the model's: {'; '.join(wrong)}. The model was trained on {its}.")
    if table.names == schema.names:
        return table
    order = [places.get(name) for name in schema.names]
    if isinstance(table.rows, np.ndarray) and None not in order:
        taken = [place for place in order if place is not None]
        return replace(table, rows=table.rows[:, taken], names=schema.names, has_order=True)
    rows = [[None if place is None else row[place] for place in order] for row in table.rows]
    return replace(table, rows=rows, names=schema.names, has_order=True)


def listed(names: Sequence[str]) -> str:
    """Names for an error's sentence: not too many, and none too long."""
    more = f" and {len(names) - MAX_NAMES_SHOWN} more" if len(names) > MAX_NAMES_SHOWN else ""
    return ", ".join(name[:60] or "''" for name in names[:MAX_NAMES_SHOWN]) + more


def is_header(fields: Sequence[str], schema: Schema) -> bool:
    """
    Whether the first line of a CSV has the names of the columns.

    It has, where a field is a name that the model knows and no value of its column; or where columns of numbers
    have none at all in this line.
    """
    kinds = schema.kinds_for(len(fields))
    values = [kind.is_value(field) for kind, field in zip(kinds, fields, strict=True)]
    known = schema.known
    if any(field.strip() in known and not is_value for field, is_value in zip(fields, values, strict=True)):
        return not any(is_number(field) for field in fields) or all(field.strip() in known for field in fields)
    numbers = [isinstance(kind, Number) for kind in kinds]
    return any(numbers) and not any(
        _is_any_number(field) or (is_wanted and not field.strip())
        for field, is_wanted in zip(fields, numbers, strict=True)
    )


def columns_of(table: Table, schema: Schema) -> list[list[Any]]:
    """
    Each column's values, as its kind reads them.

    Raises BadInput, which names the row, the field and the type that is wanted.
    """
    kinds = schema.kinds_for(table.width)
    rows = table.lists
    columns: list[list[Any]] = []
    for place, kind in enumerate(kinds):
        quick = _quick_column(table, place, kind)
        if quick is not None:
            columns.append(quick)
            continue
        column = []
        for number, row in enumerate(rows):
            try:
                column.append(kind.read(row[place], table.is_csv))
            except Misfit as misfit:
                where = exact.place(table.unit, (number, place), table.first)
                name = f" ({listed([schema.names[place]])})" if schema.names else ""
                raise BadInput(f"{where}{name}: {exact.shown(row[place])} {misfit}.") from misfit
        columns.append(column)
    return columns


def _quick_column(table: Table, place: int, kind: Kind) -> list[Any] | None:
    """A column of an array of numbers as float64; None where each value is to be looked at."""
    if not isinstance(table.rows, np.ndarray) or not isinstance(kind, (Number, AsFloat)):
        return None
    column = table.rows[:, place]
    if column.dtype.kind == "i" and column.itemsize > _EXACT_BYTES and (np.abs(column) >= _EXACT).any():
        return None
    return column.astype(float).tolist() if column.dtype.kind in "if" else None


def matrix_of(table: Table, absent: float = 0.0) -> np.ndarray[Any, Any]:
    """
    The table as float64; what sparse rows do not name is `absent`.

    Raises Unparseable, naming the field that is not a number.
    """
    rows = table.rows
    if isinstance(rows, np.ndarray) and rows.dtype.kind in "biuf":
        return rows.astype(float, copy=False)
    if any(isinstance(row, SparseRow) for row in rows):
        return _dense(rows, absent)
    if not len(rows):
        raise NoContent("The request has no rows.")
    matrix = _floats(rows, is_csv=table.is_csv)
    if matrix is None:
        try:
            matrix = np.array(columns_of(table, Schema()), dtype=float).T
        except BadInput as error:
            raise Unparseable(error.message) from error
    if matrix.ndim != 2:
        raise Unparseable(f"The rows have {matrix.ndim} dimensions: send a list of rows of numbers.")
    return matrix


def _floats(rows: Any, is_csv: bool) -> np.ndarray[Any, Any] | None:
    """The usual case, in a few calls; None where a field has to be looked at more closely."""
    if not is_csv and any(isinstance(value, str) for row in rows if isinstance(row, list) for value in row):
        return None
    try:
        matrix = np.array([list(map(float, row)) for row in rows] if is_csv else rows, dtype=float)
    except (TypeError, ValueError, OverflowError):
        return None
    is_close_look_due = is_csv and (
        np.isinf(matrix).any() or not all(exact.is_plain(field) for row in rows for field in row)
    )
    return None if is_close_look_due else matrix


def _dense(rows: Sequence[Any], absent: float) -> np.ndarray[Any, Any]:
    width = rows[0].width if isinstance(rows[0], SparseRow) else None
    if not all(isinstance(row, SparseRow) and row.width == width for row in rows):
        raise Unparseable("The rows differ in their shape: send all rows sparse and of one width, or all dense.")
    if len(rows) * len(rows[0]) > MAX_SPARSE_CELLS:
        raise Unparseable(f"The sparse rows make more than {MAX_SPARSE_CELLS} values: send fewer.")
    matrix = np.full((len(rows), len(rows[0])), absent)
    for row, sparse in zip(matrix, rows, strict=True):
        row[sparse.keys] = sparse.values
    return matrix
