"""
What a model takes and answers, as the Open Inference Protocol's metadata says it.

Handlers say what their artifacts tell, and nothing where these tell nothing. Without numpy: the server's own process
reads it, and has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# An output that its model gives no name, as MLServer calls it; and an input that may have any name.
UNNAMED_OUTPUT, UNNAMED_INPUT = "predict", "input"
# A request's header: has a network with one output answer by that output's name, as those with several do.
OUTPUTS_BY_NAME = "x-polyhost-outputs"
# What JSON has for the protocol's datatypes: one kind of number, and one of whole numbers.
_IN_JSON = {
    "BOOL": "BOOL", "BYTES": "BYTES", **dict.fromkeys(("FP16", "FP32", "FP64"), "FP64"),
    **{f"{sign}INT{bits}": "INT64" for sign in ("", "U") for bits in (8, 16, 32, 64)},
}  # fmt: skip
# Of more columns than these the table is told as one tensor: nobody sends so many tensors.
_MOST_COLUMNS = 1000
# Of all names together; what is longer is not told.
_MOST_CHARS = 1_000_000


class TensorSpec(NamedTuple):
    """`datatype`: the protocol's. `shape`: -1 for a dimension of any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Signature(NamedTuple):
    """None of a kind where they are not known."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


def bounded(signature: Signature) -> Signature:
    """The signature, unless its names are too long to be sent."""
    chars = sum(len(spec.name) + 8 * len(spec.shape) for spec in (*signature.inputs, *signature.outputs))
    return signature if chars <= _MOST_CHARS else Signature()


def in_json(datatype: str | None) -> str | None:
    """What an output is answered as, which comes as JSON; None where there is nothing for it."""
    return _IN_JSON.get(datatype or "")


def inputs_of_table(
    width: int | None, names: Sequence[str] | None, datatypes: Sequence[str | None]
) -> tuple[TensorSpec, ...]:
    """
    Of rows: a tensor for each column where the columns have names, else one for the table.

    `datatypes`: of the columns, or of all of them in one; None for one that is not known.
    """
    if width is None or None in datatypes:
        return ()
    known = [one for one in datatypes if one is not None]
    each = known * width if len(known) == 1 else known
    if names and width <= _MOST_COLUMNS:
        return tuple(TensorSpec(name, one, (-1, 1)) for name, one in zip(names, each, strict=True))
    return (TensorSpec(UNNAMED_INPUT, each[0], (-1, width)),) if len(set(each)) == 1 else ()


def output_of_rows(datatype: str, shape: Sequence[int], name: str = UNNAMED_OUTPUT) -> tuple[TensorSpec, ...]:
    """`shape`: of an answer to any number of rows, which are its first dimension."""
    return (TensorSpec(name, datatype, (-1, *shape[1:])),) if shape else ()
