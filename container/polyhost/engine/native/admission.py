"""Whether there is memory for one more model: owns the budget and what loads under way have reserved of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from polyhost.engine.errors import OutOfMemory
from polyhost.engine.native import placement
from polyhost.engine.native.placement import Begin, EndThese, Memory, Tried, TrimThese
from polyhost.engine.native.pool import DEDICATED_BYTES, Environment, Worker
from polyhost.engine.native.registry import Model, Registry
from polyhost.engine.native.retiring import Retiring
from polyhost.engine.native.workforce import Workforce
from polyhost.memory import default_budget_bytes, mib


class Admission:
    def __init__(
        self, budget_bytes: int | None, registry: Registry, workforce: Workforce, retiring: Retiring,
    ) -> None:  # fmt: skip
        """`budget_bytes`: None for a share of what there is, less what the idle server uses."""
        self._has_own_budget = budget_bytes is not None
        self.budget_bytes = default_budget_bytes() if budget_bytes is None else budget_bytes
        self._registry = registry
        self._workforce = workforce
        self._retiring = retiring
        self._reserved_bytes = 0
        # Whether the last load for which heaps were trimmed did not fit all the same.
        self._was_trimmed_in_vain = False

    async def leave_room_for_the_idle_server(self) -> None:
        """Returns when the shared workers are there."""
        if not self._has_own_budget:
            await self._workforce.prepare(Environment())
            self.budget_bytes -= self._workforce.idle_bytes() - self._registry.rows_bytes

    def used_bytes(self) -> int:
        return self._workforce.used_bytes() + self._registry.rows_bytes

    def share_bytes(self, artifact_bytes: int) -> int:
        """What models that are loaded in a shared worker take."""
        return placement.share_bytes(artifact_bytes, self._workforce.shared_heaps())

    async def admit(self, need_bytes: Callable[[], int]) -> None:
        """
        Raises OutOfMemory when a load does not fit now, even after what no model needs was given back.

        `need_bytes`: what the load will add, as far as is known by then.
        """
        tried = Tried.NOTHING
        while True:
            what = self._decide(need_bytes(), tried)
            if isinstance(what, TrimThese):
                tried = Tried.TRIM
                await self._workforce.trims.wait_for(what.workers)
                self._was_trimmed_in_vain = not isinstance(self._decide(need_bytes(), tried), Begin)
            elif isinstance(what, EndThese):
                tried = Tried.END
                await self._retiring.wait_for(what.workers, self._workforce.growth())
            elif isinstance(what, Begin):
                return
            else:
                raise OutOfMemory(
                    f"the model needs about {mib(need_bytes())}, models use {mib(self.used_bytes())} "
                    f"of {mib(self.budget_bytes)}: unload some, or give more with --memory-budget",
                )

    @contextlib.contextmanager
    def reserved(self, model: Model) -> Iterator[None]:
        """While it is being loaded."""
        need_bytes = self.need_bytes(model)
        self._reserved_bytes += need_bytes
        try:
            yield
        finally:
            self._reserved_bytes -= need_bytes

    def _decide(self, need_bytes: int, tried: Tried) -> placement.Admission[Worker]:
        workforce = self._workforce
        is_empty = not (self._reserved_bytes or workforce.holds_models() or self._registry.rows_bytes)
        memory = Memory(self.budget_bytes, self.used_bytes(), self._reserved_bytes, is_empty)
        return placement.admit(
            need_bytes, memory, workforce.heaps(), workforce.growth(), tried,
            was_trimmed_in_vain=self._was_trimmed_in_vain,
        )  # fmt: skip

    def need_bytes(self, model: Model) -> int:
        """What loading a model will add."""
        if model.is_dedicated:
            return model.source.artifact_bytes + DEDICATED_BYTES
        return placement.need_bytes(model.source.artifact_bytes, self._workforce.shared_heaps())
