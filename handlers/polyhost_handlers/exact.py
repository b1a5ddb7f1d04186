"""
Values as the type that a model declares, or a sentence on the first one that does not fit.

Python and numpy convert generously: 256 becomes 0 in a uint8, 1e39 becomes infinite in a float32, a text becomes a
number because it looks like one. Here a value keeps its meaning or is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from polyhost_handlers.errors import BadInput, Unparseable

_SHOWN = 40
_MAX_DIGITS = 60


class Misfit(ValueError):
    """Why one value is not what is wanted: the end of a sentence that begins with the value."""


def number(value: Any) -> float:
    """A field of CSV or a value of JSON as float64; a missing one is NaN. Raises Misfit."""
    if value is None:
        return math.nan
    if isinstance(value, str):
        return _number_in(value)
    if not isinstance(value, (bool, int, float)):
        raise Misfit("is not a number")
    try:
        return float(value)
    except OverflowError:
        raise Misfit("does not fit into float64") from None


def _number_in(field: str) -> float:
    text = field.strip()
    if not text:
        return math.nan
    if not is_plain(text):
        raise Misfit("is not a number")
    try:
        found = float(text)
    except ValueError:
        raise Misfit("is not a number") from None
    if math.isinf(found) and any(character.isdigit() for character in text):
        raise Misfit("does not fit into float64")
    return found


def is_plain(text: str) -> bool:
    """Whether Python reads no number in a text that is one in Python alone: 1_000, and the digits of other scripts."""
    return text.isascii() and "_" not in text


def whole(value: Any, dtype: np.dtype[Any]) -> int:
    """A whole number within the bounds of an integer type, to its last digit. Raises Misfit."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise Misfit(f"is missing: {dtype} takes whole numbers")
    try:
        found = int(value) if isinstance(value, (bool, int)) else _whole_in(value)
    except Misfit:
        raise
    except (ValueError, OverflowError):
        raise Misfit(f"is not a whole number: {dtype} takes no other") from None
    bounds = np.iinfo(dtype)
    if not bounds.min <= found <= bounds.max:
        raise Misfit(f"does not fit into {dtype}: it takes {bounds.min} to {bounds.max}")
    return found


def _whole_in(value: Any) -> int:
    if isinstance(value, str):
        text = value.strip()
        # Decimal keeps what float64 would lose. More digits than these fit nowhere, and cost time to read.
        if not math.isfinite(number(text)) or len(text) > _MAX_DIGITS:
            raise ValueError
        value = Decimal(text)
        if value != value.to_integral_value():
            raise ValueError
    elif not isinstance(value, float) or not value.is_integer():
        raise ValueError
    return int(value)


def truth(value: Any) -> bool:
    """True or false: JSON's, those words in any case, 1 or 0. Raises Misfit."""
    if isinstance(value, str):
        value = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}.get(
            value.strip().lower(), value
        )
    if isinstance(value, (bool, int, float)) and value in (0, 1):
        return bool(value)
    raise Misfit("is neither true nor false")


def text(value: Any) -> str:
    """
    A text; a whole number is its digits.

    Any other number was written in a way that is not known any more, 1E5 perhaps, so it is refused. Raises Misfit.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return str(value)
        except ValueError:  # longer than Python writes down
            raise Misfit("is too long") from None
    if value is None:
        raise Misfit("is missing: the model takes text")
    raise Misfit("is not text: put it in quotes")


def shown(value: Any) -> str:
    """A client's value for an error's sentence."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    try:
        words = "null" if value is None else repr(value)
    except ValueError:  # a whole number that is longer than Python writes down
        return "a number of thousands of digits"
    return words if len(words) <= _SHOWN else f"{words[:_SHOWN]}…"


def place(unit: str, position: Sequence[int], first: int = 1) -> str:
    """`Row 1, field 2`, or of arrays of more dimensions `Row 1, position [0, 2, 1]`."""
    if not position:
        return "The value"
    row = f"{unit} {position[0] + first}"
    if len(position) == 1:
        return row
    return f"{row}, field {position[1] + 1}" if len(position) == 2 else f"{row}, position {list(position)}"


def array_of(values: Any, dtype: np.dtype[Any], unit: str = "Row", first: int = 1) -> np.ndarray[Any, Any]:
    """
    Nested lists, as JSON and CSV have them, or an array, as `dtype`; object stands for text.

    Raises BadInput, which names the value's place and the type, and Unparseable where the rows differ in length.
    """
    wanted = _readers(dtype)
    array = values if isinstance(values, np.ndarray) else _from_lists(values, dtype)
    if array.dtype.kind in "biuf" and dtype.kind in "biuf":
        position = _first_misfit(array, dtype)
        if position is None:
            with np.errstate(over="ignore"):
                return array.astype(dtype)
        raise _misfit_at(array[position].item(), wanted, dtype, place(unit, position, first))
    result = np.empty(array.shape, dtype=dtype)
    for position, value in zip(np.ndindex(array.shape), array.ravel().tolist(), strict=True):
        try:
            result[position] = wanted(value)
        except Misfit as misfit:
            raise BadInput(f"{place(unit, position, first)}: {shown(value)} {misfit}.") from misfit
    return result


def _readers(dtype: np.dtype[Any]) -> Callable[[Any], Any]:
    if dtype.kind in "iu":
        return lambda value: whole(value, dtype)
    if dtype.kind == "f":
        return lambda value: _real(value, dtype)
    return truth if dtype.kind == "b" else text


def _real(value: Any, dtype: np.dtype[Any]) -> float:
    found = number(value)
    if math.isfinite(found) and abs(found) > float(np.finfo(dtype).max):
        with np.errstate(over="ignore"):
            if np.isinf(dtype.type(found)):
                raise Misfit(f"does not fit into {dtype}")
    return found


def _misfit_at(value: Any, read: Callable[[Any], Any], dtype: np.dtype[Any], where: str) -> BadInput:
    try:
        read(value)
    except Misfit as misfit:
        return BadInput(f"{where}: {shown(value)} {misfit}.")
    return BadInput(f"{where}: {shown(value)} does not fit into {dtype}.")


def _from_lists(values: Any, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """As numbers if all are, and as objects where numpy would change them: in texts, and large whole numbers."""
    try:
        array = np.asarray(values)
        is_kept = array.dtype.kind in "biu" or (array.dtype.kind == "f" and dtype.kind == "f")
        array = array if is_kept and dtype.kind != "O" else np.array(values, dtype=object)
    except (ValueError, OverflowError) as error:
        raise Unparseable(f"The rows differ in length: {error}.") from error
    return array


def _first_misfit(array: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> tuple[int, ...] | None:
    """Where the first number lies that `dtype` cannot hold."""
    if not array.size or array.dtype == dtype:
        return None
    wrong: Any
    if dtype.kind == "b":
        wrong = (array != 0) & (array != 1)
    elif dtype.kind == "f":
        with np.errstate(over="ignore"):
            wrong = np.isinf(array.astype(dtype)) & ~np.isinf(array)
    elif array.dtype.kind == "f":
        bounds = np.iinfo(dtype)
        wide = array.astype(float)
        # One beyond the largest is a power of two, which float64 has; the largest itself it may not have.
        wrong = ~np.isfinite(wide) | (wide != np.floor(wide)) | (wide < bounds.min) | (wide >= float(bounds.max + 1))
    elif array.dtype.kind == "b":
        return None
    else:
        bounds, own = np.iinfo(dtype), np.iinfo(array.dtype)
        wrong = np.zeros(array.shape, dtype=bool)
        if own.min < bounds.min:
            wrong |= array < bounds.min
        if own.max > bounds.max:
            wrong |= array > bounds.max
    if not wrong.any():
        return None
    return tuple(int(index) for index in np.unravel_index(int(np.argmax(wrong)), array.shape))
