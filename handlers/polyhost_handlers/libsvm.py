"""
libsvm's text format: a line for each row, `label index:value index:value …`.

The label may be left out, and a ranking's `qid:…` may follow it. Text after `#` and empty lines are no rows.
"""

from __future__ import annotations

import re
from array import array
from typing import Any

import numpy as np

from polyhost_handlers.errors import LoadFailed, NoContent, Unparseable

# The setting that says which index the first feature has: 0, as XGBoost counts, or 1, as libsvm itself does.
FIRST_INDEX = "POLYHOST_LIBSVM_FIRST_INDEX"

_MOST_FEATURES = 2**31 - 1
_NUMBER = r"[+-]?(?:(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|nan|inf|infinity)"
_ITEM = re.compile(rf"(\d{{1,18}}):({_NUMBER})", re.ASCII | re.IGNORECASE)
_LABEL = re.compile(rf"\s*{_NUMBER}(?:\s+qid:\d+)?(?!\S)", re.ASCII | re.IGNORECASE)


def first_index_of(setting: str) -> int:
    """The value of `POLYHOST_LIBSVM_FIRST_INDEX`, 0 where it is empty. Raises LoadFailed."""
    if setting not in ("", "0", "1"):
        raise LoadFailed(f"Unable to load model: {FIRST_INDEX} is '{setting}': set it to 0 or 1.")
    return int(setting or 0)


def decode_libsvm(body: bytes, features: int | None, first_index: int = 0) -> Any:
    """
    The rows as scipy's csr_matrix of shape (rows, `features`); what a line does not name is not stored.

    Without a model, and so without its number of features, there are as many as the highest index needs.
    Which index the first feature has is the model's matter: it does not depend on what is in the lines.
    Raises Unparseable, quoting the line's beginning.
    """
    from scipy.sparse import csr_matrix

    most = _MOST_FEATURES if features is None else features
    values, columns, starts = array("d"), array("q"), array("q", [0])
    for number, line in enumerate(body.decode("utf-8-sig", "replace").splitlines(), 1):
        content = line.partition("#")[0]
        if not content.strip():
            continue
        label = _LABEL.match(content)
        for item in content[label.end() if label else 0 :].split():
            pair = _ITEM.fullmatch(item)
            if pair is None:
                raise _refused(number, line, f"it is not libsvm: '{item[:40]}' is not index:value")
            column = int(pair[1]) - first_index
            if not 0 <= column < most:
                raise _refused(number, line, _which(pair[1], most, first_index))
            columns.append(column)
            values.append(float(pair[2]))
        row = columns[starts[-1] :]
        if len(set(row)) < len(row):
            raise _refused(number, line, "an index is there twice")
        starts.append(len(values))
    if len(starts) == 1:
        raise NoContent("The request has no rows.")
    width = max(columns, default=-1) + 1 if features is None else features
    return csr_matrix((np.array(values), np.array(columns), np.array(starts)), shape=(len(starts) - 1, width))


def _refused(number: int, line: str, reason: str) -> Unparseable:
    return Unparseable(f"Line {number} begins '{line[:40]}': {reason}.")


def _which(index: str, features: int, first_index: int) -> str:
    other = 1 - first_index
    return (
        f"index {index} is none of the model's, which are {first_index} to {features - 1 + first_index} "
        f"(set {FIRST_INDEX}={other} if your rows count from {other})"
    )
