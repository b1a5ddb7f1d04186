"""Pages of lists, without a server: nothing is shown twice or left out."""

from __future__ import annotations

import base64
import itertools
import json
from typing import Any

import pytest
from polyhost.endpoint.hosting.pages import BadToken, Row, page_of


def row(name: str, created: float = 0, status: str = "InService", modified: float = 0) -> Row:
    return Row(name, created, modified, status, {"Name": name})


def names(rows: list[Row], **asked: Any) -> list[str]:
    return [shown["Name"] for shown in page_of(rows, asked)[0]]


@pytest.mark.parametrize("by", ["Name", "CreationTime", "Status"])
@pytest.mark.parametrize("order", ["Ascending", "Descending"])
def test_every_row_once_in_order(by: str, order: str) -> None:
    """With many rows of the same time and state, whatever the size of a page; the last page has no token."""
    rows = [row(f"n{number:02}", number // 7, ("Failed", "InService")[number % 2]) for number in range(40)]
    for size in (1, 7, 39, 40, 100):
        asked: dict[str, Any] = {"SortBy": by, "SortOrder": order, "MaxResults": size}
        seen = []
        for _ in itertools.count():
            page, token = page_of(rows, asked)
            seen += [shown["Name"] for shown in page]
            if token is None:
                break
            asked["NextToken"] = token
        assert sorted(seen) == sorted(row.name for row in rows)
        key = {"Name": lambda r: r.name, "CreationTime": lambda r: r.created, "Status": lambda r: r.status}[by]
        values = [key(next(row for row in rows if row.name == name)) for name in seen]
        assert values == sorted(values, reverse=order == "Descending")


def test_the_newest_ten_are_the_default() -> None:
    """As AWS answers a list without parameters."""
    rows = [row(f"n{number:02}", number) for number in range(12)]

    assert names(rows) == [f"n{number:02}" for number in range(11, 1, -1)]


def test_rows_that_go_and_come_between_pages() -> None:
    """The row that a token names may be gone: the next page begins after its place."""
    rows = [row(name) for name in "abcd"]
    asked = {"SortBy": "Name", "SortOrder": "Ascending", "MaxResults": 2}
    _, token = page_of(rows, asked)

    later = [row(name) for name in ("a", "ab", "c", "d", "e")]
    assert names(later, **asked, NextToken=token) == ["c", "d"]


def test_filters() -> None:
    """Times: from the first on, up to before the second."""
    rows = [row("one", 1, "Failed", 10), row("two", 2, "InService", 20), row("three", 3, "InService", 30)]

    assert names(rows, NameContains="o") == ["two", "one"]
    assert names(rows, StatusEquals="Failed") == ["one"]
    assert names(rows, CreationTimeAfter=2) == ["three", "two"]
    assert names(rows, CreationTimeBefore=2) == ["one"]
    assert names(rows, LastModifiedTimeAfter=20, LastModifiedTimeBefore=30) == ["two"]


@pytest.mark.parametrize(
    "token",
    ["x", "%%%", "é", *(base64.b64encode(json.dumps(value).encode()).decode() for value in (
        5, [], ["Name", "Ascending", "", "a"], ["CreationTime", "Ascending", 1, "a"],
        ["CreationTime", "Descending", "1", "a"], ["CreationTime", "Descending", 1, 1],
    ))],
)  # fmt: skip
def test_tokens_of_other_lists(token: str) -> None:
    """Made up, of another order, or of other types."""
    with pytest.raises(BadToken, match=r"^NextToken is "):
        page_of([row("a")], {"NextToken": token})
