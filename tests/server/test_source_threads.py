"""Threads of the fetcher: a source that hangs keeps no other waiting, and sources that are not asked keep none."""

from __future__ import annotations

import threading
import time

import pytest
from polyhost.artifacts.threads import SourceThreads
from support.tree import wait_until


def test_threads_of_sources_that_are_not_asked_any_more_end() -> None:
    threads = SourceThreads(4)
    before = threading.active_count()
    done = threading.Semaphore(0)
    for number in range(500):
        threads.submit(f"s3://bucket-{number}/", done.release)
        assert done.acquire(timeout=60)
    wait_until(lambda: threading.active_count() <= before + 10, 60, "idle threads have ended")


def test_a_source_that_hangs_keeps_nobody_waiting() -> None:
    threads = SourceThreads(2)
    hangs, answered = threading.Event(), threading.Event()
    for _ in range(5):
        threads.submit("hangs", lambda: hangs.wait(240))
    for number in range(50):
        answered.clear()
        threads.submit(f"source-{number}", answered.set)
        assert answered.wait(60)
    hangs.set()


def test_what_waits_for_a_source_is_carried_out() -> None:
    """Its threads are busy, and many others come and go meanwhile."""
    threads = SourceThreads(1)
    gate, done = threading.Event(), threading.Semaphore(0)
    threads.submit("busy", lambda: gate.wait(240))
    for _ in range(20):
        threads.submit("busy", done.release)
    for number in range(50):
        threads.submit(f"source-{number}", lambda: time.sleep(0))
    gate.set()
    assert all(done.acquire(timeout=60) for _ in range(20))


def test_a_system_without_threads_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next question, once there are some, is answered."""
    threads = SourceThreads(1)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for number in range(20):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                threads.submit(f"source-{number}", lambda: None)
    done = threading.Event()
    threads.submit("another", done.set)
    assert done.wait(60)
