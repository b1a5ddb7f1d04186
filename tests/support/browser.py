"""Chromium as it comes from the system's packages, and pages in it that must do nothing but what they are meant to."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect, sync_playwright

# Long enough for a machine that does other things as well.
_WAIT_MS = 120_000
# What an action came to is shown for a few seconds. Here it is shown until the test, or Escape, takes it away.
_TOASTS_STAY = """
const remove = Element.prototype.remove;
Element.prototype.remove = function () { if (!this.classList.contains("toast")) remove.call(this); };
"""
_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def chromium() -> str:
    """Its path; where it is missing the test is skipped, in continuous integration it fails."""
    for name in _NAMES:
        if path := shutil.which(name):
            return path
    reason = "there is no Chromium (scripts/install-chromium)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """While it is open, nothing else in this process can run an event loop."""
    # Chromium's sandbox is not for root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    expect.set_options(timeout=_WAIT_MS)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=arguments)
        yield opened
        opened.close()


class Watch:
    """What a page did that it must not do."""

    def __init__(self, page: Page, origin: str) -> None:
        self.errors: list[str] = []
        self.strangers: list[str] = []
        self._origin = origin
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: self.errors.append(f"a dialog: {dialog.message}"))
        page.on("request", self._asked)

    def _said(self, message: ConsoleMessage) -> None:
        # Refusals, and a server that is gone, are told by the page itself.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.errors.append(message.text)

    def _asked(self, request: Request) -> None:
        if not request.url.startswith((self._origin + "/", "blob:", "data:")):
            self.strangers.append(request.url)


@contextlib.contextmanager
def page(browser: Browser, origin: str, path: str = "/", **settings: Any) -> Iterator[Page]:
    """A page of its own session, where nothing went wrong and nobody else was asked."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
    try:
        context.add_init_script(_TOASTS_STAY)
        opened = context.new_page()
        opened.set_default_timeout(_WAIT_MS)
        watch = Watch(opened, origin)
        opened.goto(origin + path)
        yield opened
        assert watch.errors == []
        assert watch.strangers == []
    finally:
        context.close()
