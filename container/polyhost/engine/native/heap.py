"""
The ledger of one worker's memory. This class alone writes it; others say what happened and read what follows.

What counts as use is measured. Room that unloaded models have left in the process is subtracted by an estimate, until a
trim gives it back to the system and the ledger is exact again.
"""

from __future__ import annotations

from collections.abc import Callable


class Heap:
    def __init__(self, resident_bytes: Callable[[], int]) -> None:
        """`resident_bytes`: measures the process's private memory."""
        self._resident_bytes = resident_bytes
        # What it had before it held any model.
        self._base_bytes = 0
        # What unloaded models left, and no later load has filled yet.
        self._free_bytes = 0
        # What unloaded models left since the last trim, filled since or not.
        self._freed_bytes = 0
        # What it had grown by at the last trim.
        self._trimmed_bytes = 0
        # The archives of all its models. Loads under way count, because the process grows while they load.
        self.artifact_bytes = 0
        # What its models took when they were loaded; no more than they used at the last trim.
        self.loaded_bytes = 0
        self._loads = 0
        self.wants_trim = False

    def begin(self) -> None:
        """The worker is there, and holds no model."""
        self._base_bytes = self._resident_bytes()

    def loading(self, artifact_bytes: int) -> None:
        self.artifact_bytes += artifact_bytes
        self._loads += 1

    def loaded(self, share_bytes: int, grown_bytes: int) -> None:
        """
        `share_bytes`: what a model of that size takes; it fills the room that others left first.

        `grown_bytes`: what the process grew by while it loaded the model.
        """
        self._loads -= 1
        self._free_bytes = max(0, self._free_bytes - share_bytes)
        self.loaded_bytes += grown_bytes
        self.wants_trim = True

    def failed(self, artifact_bytes: int) -> None:
        """A load was not finished; what it had taken is loose."""
        self._loads -= 1
        self.artifact_bytes -= artifact_bytes
        self.wants_trim = True

    def unloaded(self, artifact_bytes: int, share_bytes: int, grown_bytes: int) -> None:
        """`grown_bytes`: as when the model was loaded."""
        self.moved(artifact_bytes, share_bytes, grown_bytes)
        self.wants_trim = True

    def moved(self, artifact_bytes: int, share_bytes: int, grown_bytes: int) -> None:
        """Models are served elsewhere from now on. Their worker drops them, and is trimmed with that."""
        self.artifact_bytes -= artifact_bytes
        self.loaded_bytes = max(0, self.loaded_bytes - grown_bytes)
        self._free_bytes += share_bytes
        self._freed_bytes += share_bytes

    def trimming(self) -> None:
        self.wants_trim = False

    def trimmed(self, resident_bytes: int) -> None:
        """`resident_bytes`: as the worker measured it when it had given back what it could."""
        self._trimmed_bytes = max(0, resident_bytes - self._base_bytes)
        self._free_bytes = 0
        self._freed_bytes = 0
        if not self.is_loading:
            self.loaded_bytes = min(self.loaded_bytes, self._trimmed_bytes)

    @property
    def is_loading(self) -> bool:
        return self._loads > 0

    @property
    def used_bytes(self) -> int:
        """What its models use."""
        return max(0, self._resident_bytes() - self._base_bytes - self._free_bytes)

    @property
    def loose_bytes(self) -> int:
        """
        How much of what is used a trim may give back, at most.

        What has grown since the last trim may be what loads and calls held for a moment. What was freed since then
        is an estimate: it may be twice as much.
        """
        grown_bytes = max(0, self._resident_bytes() - self._base_bytes - self._trimmed_bytes)
        return min(self.used_bytes, grown_bytes + self._freed_bytes)
