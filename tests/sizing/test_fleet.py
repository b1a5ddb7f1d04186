"""What all models are like, from some."""

from __future__ import annotations

import pytest
from polyhost.sizing.fleet import fleet_of, least_squares, line_of, nearest, stratified, usual_times

from sizing.fleets import MIB, measured


def test_a_sample_has_the_smallest_the_largest_and_even_ranks_between() -> None:
    """Of a hundred sizes five are taken, whatever their order; of few, all."""
    archives = {f"m{size}": size for size in reversed(range(1, 101))}

    assert stratified(archives, 5) == ["m1", "m26", "m51", "m75", "m100"]
    assert stratified(archives, 1) == ["m51"]
    assert len(set(stratified(archives, 99))) == 99
    assert stratified({"b": 1, "a": 1}, 5) == ["a", "b"]


def test_memory_is_a_line_of_the_archives_size() -> None:
    """Points on a line give the line."""
    assert least_squares([(10, 120), (20, 140), (40, 180)]) == pytest.approx((100, 2))


def test_neither_part_of_the_line_is_negative() -> None:
    """A falling line becomes the mean, one that would begin below 0 goes through the origin."""
    assert least_squares([(10, 50), (20, 30)]) == (40, 0)
    assert least_squares([(10, 0), (20, 30)]) == pytest.approx((0, 600 / 500))
    assert least_squares([(10, 50), (10, 30)]) == (40, 0)


def test_what_the_first_of_a_process_pays_is_no_models() -> None:
    """It is left out of the line, and its times are those of the others; but not where there are no others."""
    first = measured("a", 10, 9 * MIB, is_first=True, store_secs=5, disk_secs=3)
    others = [measured(name, size, 2 * size, store_secs=0.4) for name, size in (("b", 10), ("c", 20))]

    assert line_of("xgboost", [first, *others]).memory_bytes(1_000_000) == pytest.approx(2_000_000)
    assert not line_of("xgboost", [first, *others]).is_rough
    usual = usual_times(first, [first, *others])
    assert (usual.store_secs, usual.disk_secs) == (0.4, 0.1)

    alone = line_of("xgboost", [first])
    assert (alone.memory_bytes(10), alone.is_rough) == (9 * MIB, True)
    assert usual_times(first, [first]) == first


def test_a_model_is_like_the_measured_one_nearest_in_size() -> None:
    """And a measured one like itself, also among others of its size."""
    sample = [measured("small", 10, 1), measured("large", 1000, 1), measured("also small", 10, 1)]

    found = nearest({"small": 10, "also small": 10, "x": 400, "y": 600}, sample)

    assert {key: one.key for key, one in found.items() if key != "x"} == {
        "small": "small", "also small": "also small", "y": "large",
    }  # fmt: skip
    assert found["x"].archive_bytes == 10


def test_each_kind_has_a_line_of_its_own() -> None:
    """Small archives with code cost a process each, large ones of boosters do not."""
    sample = [
        measured("code1", 1000, 5 * MIB, kind="own code"),
        measured("code2", 1000, 5 * MIB, kind="own code"),
        measured("tree1", 100_000, MIB),
        measured("tree2", 200_000, 2 * MIB),
    ]

    fleet = fleet_of({**{one.key: one.archive_bytes for one in sample}, "x": 1100, "y": 150_000}, sample)

    assert fleet.sizes["x"] == 5 * MIB
    assert fleet.sizes["y"] == pytest.approx(1.5 * MIB)
    assert fleet.per_gib("own code") == 1024 // 5
    assert fleet.largest_bytes == 5 * MIB
    assert fleet.total_bytes == sum(fleet.sizes.values())
