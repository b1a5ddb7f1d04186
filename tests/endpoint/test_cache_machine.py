"""The model cache against a plain model of it (endpoint/cache_machine.py), over a real engine and a real store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from support.forms import IS_LONG, examples
from support.stack import BucketStore, FolderStore, Stack, Store

from endpoint.cache_machine import DISK_BYTES, CacheMachine, Found
from endpoint.cache_mutants import MUTANTS, SHORT_MUTANTS
from endpoint.conftest import environ_for

# To find a shorter way to a mistake takes long with real processes.
_PHASES = tuple(Phase) if IS_LONG else (Phase.explicit, Phase.reuse, Phase.generate)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, s3_url: str) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("stack"), environ_for(s3_url), DISK_BYTES)
    yield stack
    stack.stop()


def run(stack: Stack, new_store: Callable[[str], Store], **changes: Any) -> None:
    CacheMachine.stack, CacheMachine.new_store = stack, staticmethod(new_store)  # type: ignore[assignment]
    asked: dict[str, Any] = {"max_examples": examples(8), "stateful_step_count": 20, "phases": _PHASES, **changes}
    run_state_machine_as_test(CacheMachine, settings=settings(deadline=None, **asked))  # type: ignore[no-untyped-call]


@pytest.mark.fuzz
def test_any_order_of_what_may_happen_over_a_folder(stack: Stack) -> None:
    run(stack, lambda name: FolderStore(stack.folder / name))


@pytest.mark.skipif(not IS_LONG, reason="the store makes little difference: the long form has it")
def test_any_order_of_what_may_happen_over_a_bucket(stack: Stack, s3: Any, bucket: str) -> None:
    # One prefix for all: the fetcher keeps threads for each source that it has ever read.
    run(stack, lambda _: BucketStore(s3, bucket, "models"))


@pytest.mark.parametrize("mistake", list(MUTANTS) if IS_LONG else list(MUTANTS)[:SHORT_MUTANTS])
def test_a_mistake_that_is_planted_is_found(mistake: str, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[mistake](monkeypatch)
    monkeypatch.setattr(CacheMachine, "fail", Found)
    with pytest.raises(Found):
        run(
            stack, lambda name: FolderStore(stack.folder / name), phases=(Phase.generate,), max_examples=60,
            stateful_step_count=30,
        )  # fmt: skip
