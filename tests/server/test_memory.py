"""The memory guard: its decisions alone, and a real server that says 507 and means "not now"."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from polyhost.memory import (
    FIRST_LOAD_BYTES,
    Guard,
    PastLoad,
    _own_cgroup_limits,
    anonymous_bytes,
    cpu_limit,
    estimate_bytes,
    fits,
    memory_limit_bytes,
    private_bytes,
)
from support.server import Server

MIB = 1024**2


def test_the_first_load_of_a_kind_is_estimated_by_its_size() -> None:
    """Nothing is known yet: a worker's own pages and the archive."""
    assert estimate_bytes(5 * MIB, []) == FIRST_LOAD_BYTES + 5 * MIB


def test_later_loads_are_estimated_by_what_earlier_ones_cost() -> None:
    """A part that every load pays, and a part for each byte of archive."""
    seen = [PastLoad(1 * MIB, 30 * MIB), PastLoad(11 * MIB, 60 * MIB)]

    assert estimate_bytes(0, seen) == 30 * MIB
    assert estimate_bytes(11 * MIB, seen) == pytest.approx(60 * MIB, rel=0.1)


@given(st.integers(0, 10**12), st.lists(st.builds(PastLoad, st.integers(0, 10**12), st.integers(0, 10**12))))
def test_an_estimate_is_never_below_the_cheapest_load_seen(artifact_bytes: int, seen: list[PastLoad]) -> None:
    """Whatever was measured, the estimate is a size."""
    assert estimate_bytes(artifact_bytes, seen) >= min((load.grown_bytes for load in seen), default=0)


def test_a_model_that_has_the_server_to_itself_may_always_try() -> None:
    """An estimate alone never refuses a model for good."""
    assert fits(100, 10, 0, 0, is_alone=True)
    assert not fits(100, 10, 0, 0, is_alone=False)
    assert fits(5, 10, 3, 2, is_alone=False)
    assert not fits(5, 10, 3, 3, is_alone=False)


def test_reservations_of_loads_under_way_count(tmp_path: Path) -> None:
    """Two loads that each fit alone do not both begin; what a dead process reserved is forgotten."""
    (tmp_path / f"loading-{os.getppid()}").write_text(str(10**15))
    (tmp_path / "loading-999999999").write_text("1")
    with pytest.raises(MemoryError, match="unload some"), Guard(tmp_path, 2**40).admit("xgboost", 1):
        pytest.fail("admitted")
    assert not (tmp_path / "loading-999999999").exists()

    (tmp_path / f"loading-{os.getppid()}").write_text("1")
    with Guard(tmp_path, 2**40).admit("xgboost", 1):
        assert (tmp_path / f"loading-{os.getpid()}").exists()
    assert not (tmp_path / f"loading-{os.getpid()}").exists()


def test_what_a_load_cost_is_learned_unless_it_failed(tmp_path: Path) -> None:
    """The book holds a line for each load that succeeded."""
    guard = Guard(tmp_path, 2**40)
    with guard.admit("xgboost", 7):
        # Fresh pages: what malloc has left from other tests would hold it without any growth.
        block = mmap.mmap(-1, 32 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        block.write(b"x" * 32 * MIB)
    block.close()
    with pytest.raises(ValueError, match="no model"), guard.admit("xgboost", 8):
        raise ValueError("no model")

    (line,) = (tmp_path / "seen-xgboost").read_text().splitlines()
    artifact_bytes, grown_bytes = map(int, line.strip("[]").split(","))
    assert artifact_bytes == 7
    assert grown_bytes >= 30 * MIB


def test_anonymous_bytes_are_resident_pages_that_are_no_files() -> None:
    """The fields of /proc/PID/statm are pages: size, resident, shared, and more."""
    assert anonymous_bytes(b"500 30 10 1 0 90 0\n") == 20 * os.sysconf("SC_PAGE_SIZE")


def test_private_bytes_are_of_living_processes() -> None:
    """Ours are some; those of a process that is gone are none."""
    assert private_bytes(os.getpid()) > MIB
    assert private_bytes(999_999_999) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1048576\n", 1048576), ("max\n", None), ("9223372036854771712\n", None)],
)
def test_the_containers_limit_is_the_smaller_one(tmp_path: Path, text: str, expected: int | None) -> None:
    """cgroup v1 and v2 write the limit as a number; none is `max`, or more than any machine has."""
    (tmp_path / "limit").write_text(text)
    machine = memory_limit_bytes(())

    assert memory_limit_bytes([tmp_path / "limit", tmp_path / "missing"]) == (expected or machine)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "max 100000"}, len(os.sched_getaffinity(0))),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, len(os.sched_getaffinity(0))),
    ],
)
def test_the_containers_cpus_are_its_quota(tmp_path: Path, files: dict[str, str], cpus: int) -> None:
    """Both generations of cgroups; half a CPU is one."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    assert cpu_limit(tmp_path) == cpus


def test_a_full_server_says_507_and_serves_again_after_an_unload(engine: str, samples_folder: Path) -> None:
    """Copies of a model load until the budget is spent; those that are loaded go on; after an unload there is room."""
    budget = {"mms": "250MiB", "native": "10MiB"}[engine]
    server = Server(engine, ["--memory-budget", budget], {"SAGEMAKER_MULTI_MODEL": "true"})
    try:
        statuses = []
        while not statuses or (statuses[-1] == 200 and len(statuses) < 3000):
            statuses.append(server.load(f"copy-{len(statuses)}", samples_folder / "houston").status)
        last = len(statuses) - 1
        assert statuses[-1] == 507, statuses
        assert last >= 2
        server.process.wait_for_line(rf"model copy-{last}: 507: the model needs about \d+ MiB, .* of {budget[:-3]} MiB")
        for number in range(last):
            assert server.invoke(f"copy-{number}", "1998,2150,3,2.5,0.4,2").status == 200

        unloaded = 0
        status = 507
        while status != 200 and unloaded <= 1 + last // 20:
            assert server.unload(f"copy-{unloaded}").status == 200
            unloaded += 1
            status = server.load(f"copy-{last}", samples_folder / "houston").status
        assert status == 200, server.process.log
        assert server.invoke(f"copy-{last}", "1998,2150,3,2.5,0.4,2").status == 200
    finally:
        assert server.stop() == 0


def test_the_limit_of_a_systemd_unit_counts(tmp_path: Path) -> None:
    """It is in the process's own cgroup, or one above it."""
    (tmp_path / "cgroup").write_text("0::/system.slice/polyhost.service\n")
    limits = _own_cgroup_limits(tmp_path / "cgroup", tmp_path / "fs")
    (tmp_path / "fs" / "system.slice" / "polyhost.service").mkdir(parents=True)
    (tmp_path / "fs" / "system.slice" / "memory.max").write_text("123456789\n")
    (tmp_path / "fs" / "system.slice" / "polyhost.service" / "memory.max").write_text("max\n")
    assert memory_limit_bytes(limits) == 123456789
    assert _own_cgroup_limits(tmp_path / "nothing") == []
