"""The dashboard's list of models over a source that is listed on demand, a part at a time."""

from __future__ import annotations

import asyncio
from typing import Any

from polyhost.artifacts import Listed, Listing
from polyhost.endpoint.definitions import Container
from polyhost.endpoint.inventory import Inventory, Page, Place, Query
from polyhost.endpoint.measures import Measures
from polyhost.endpoint.shelf import Shelf

SHELF = Shelf(Container(source="s3://b/k/"), "s3://b/k/", "polyhost", "v")
PLACE = Place(SHELF, "polyhost", "v")


class Source:
    """Seven archives, of which a listing has three at most."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._listing: Listing | None = None

    def on_disk(self) -> Any:
        return {}.keys()

    def last_listing(self, _: str) -> Listing | None:
        return self._listing

    async def list(self, _: str, after: str = "") -> dict[str, Listed]:
        self.asked.append(after)
        names = [name for name in (f"m{number}.tar" for number in range(7)) if name > after]
        archives = {name: Listed("1", 1) for name in names[:3]}
        self._listing = Listing(archives, float(len(self.asked)), after, len(names) > 3)
        return archives


def test_a_source_is_listed_when_it_is_asked_for_and_in_parts() -> None:
    """Once for the first who looks; nobody's looking lists it again."""

    async def case() -> None:
        source: Any = Source()
        inventory = Inventory(source, Measures(emf_namespace=None))

        async def shown() -> tuple[list[str], str, str]:
            page: Page = await inventory.page(PLACE, Query(), 0, 10)
            return [row.name for row in page.rows], page.listed_after, page.next_after

        first = (["m0.tar", "m1.tar", "m2.tar"], "", "m2.tar")
        await shown()
        for _ in range(10):
            await asyncio.sleep(0)
        for _ in range(3):
            assert await shown() == first
        assert source.asked == [""]
        await inventory.list_now(SHELF, "m2.tar")
        assert await shown() == (["m3.tar", "m4.tar", "m5.tar"], "m2.tar", "m5.tar")
        await inventory.list_now(SHELF, "m5.tar")
        assert await shown() == (["m6.tar"], "m5.tar", "")
        await inventory.list_now(SHELF)
        assert await shown() == first

    asyncio.run(asyncio.wait_for(case(), 30))
