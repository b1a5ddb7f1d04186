"""Lists as AWS gives them: filtered, sorted, a page at a time. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyhost.endpoint.hosting.outcomes import Outcome

_DEFAULT_PAGE = 10


class BadToken(Exception):
    pass


@dataclass(frozen=True)
class Row:
    """What lists filter and sort by, and what they show."""

    name: str
    created: float
    modified: float
    status: str
    shown: Mapping[str, Any]


def page_of(rows: Sequence[Row], asked: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], str | None]:
    """
    A page of what `asked`, the parameters of a List operation, wants to see, and the token of the next one.

    A token names the last row that was seen, so that none is left out or shown twice while others come and go.
    Raises BadToken.
    """
    by, order = asked.get("SortBy", "CreationTime"), asked.get("SortOrder", "Descending")
    is_descending = order == "Descending"
    wanted = [(_place(row, by), row) for row in rows if _is_wanted(row, asked)]
    wanted.sort(key=lambda item: item[0], reverse=is_descending)
    if asked.get("NextToken"):
        seen = _read(asked["NextToken"], by, order)
        wanted = [(place, row) for place, row in wanted if (place < seen if is_descending else place > seen)]
    size = asked.get("MaxResults", _DEFAULT_PAGE)
    page = wanted[:size]
    token = _written(page[-1][0], by, order) if len(wanted) > size else None
    return [row.shown for _, row in page], token


def _place(row: Row, by: str) -> tuple[Any, str]:
    """No two rows are in one place: keys are lower-case names, which differ."""
    first = {"Name": "", "CreationTime": row.created, "Status": row.status}[by]
    return first, row.name.lower()


def _is_wanted(row: Row, asked: Mapping[str, Any]) -> bool:
    return (
        asked.get("NameContains", "") in row.name
        and asked.get("StatusEquals", row.status) == row.status
        and asked.get("CreationTimeAfter", row.created) <= row.created
        and ("CreationTimeBefore" not in asked or row.created < asked["CreationTimeBefore"])
        and asked.get("LastModifiedTimeAfter", row.modified) <= row.modified
        and ("LastModifiedTimeBefore" not in asked or row.modified < asked["LastModifiedTimeBefore"])
    )


def _written(place: tuple[Any, str], by: str, order: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([by, order, *place]).encode()).decode()


def _read(token: str, by: str, order: str) -> tuple[Any, str]:
    try:
        token_by, token_order, first, name = json.loads(base64.urlsafe_b64decode(token))
    except (ValueError, binascii.Error, RecursionError, TypeError) as error:
        raise BadToken("NextToken is not one of this list: begin again without it") from error
    kind: type | tuple[type, ...] = (int, float) if by == "CreationTime" else str
    if (token_by, token_order) != (by, order) or not isinstance(first, kind) or not isinstance(name, str):
        raise BadToken("NextToken is of a list that was sorted otherwise: begin again without it")
    return first, name


def page_outcome(field: str, rows: Sequence[Row], asked: Mapping[str, Any]) -> Outcome:
    """A page under its name in the answer. Raises BadToken."""
    page, token = page_of(rows, asked)
    answer: dict[str, Any] = {field: page}
    if token:
        answer["NextToken"] = token
    return Outcome(answer)
