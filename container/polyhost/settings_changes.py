"""What the settings file says since the server has started: what counts at once, and what needs a restart."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

from polyhost.config import Config, name_of
from polyhost.errors import InvalidSetting

logger = logging.getLogger("polyhost")

_AT_ONCE = ("preload",)


def need_restart(before: Config, now: Config) -> list[str]:
    """The names of settings that differ, as a settings file has them, but for those that count at once."""
    return sorted(
        name_of(field)
        for field in dataclasses.fields(Config)
        if field.name not in _AT_ONCE and getattr(before, field.name) != getattr(now, field.name)
    )


class SettingsChanges:
    def __init__(self, config: Config, read: Callable[[], Config] | None) -> None:
        """`config`: what the server has started with. `read` reads it again; None where it cannot change."""
        self._started_with = self._newest = config
        self._read = read

    def look(self) -> Config:
        """What the settings are by now, whether or not they count yet. Logs what needs a restart."""
        if self._read is None or self._started_with.config is None:
            return self._newest
        try:
            self._newest = self._read()
        except InvalidSetting as error:
            logger.error("%s What was read before stays in force.", error)  # noqa: TRY400
            return self._newest
        if names := need_restart(self._started_with, self._newest):
            logger.warning(
                "%s: the new values of %s need a restart: the server goes on with the old ones.",
                self._started_with.config,
                ", ".join(names),
            )
        return self._newest
