"""The attacks of `make attacks`, on a front whose answers are nothing: each sends what it should, and ends."""

from __future__ import annotations

import pytest
from polyhost.api.http import Reply
from polyhost.http_limits import HttpLimits
from support.fronts import front

from benchmarks.attacks import ATTACKS, Attack, under
from benchmarks.neighbours import Turns


@pytest.mark.parametrize("attack", [one for one in ATTACKS if one.threads > 1], ids=lambda attack: attack.name)
def test_an_attack_sends_and_ends(attack: Attack) -> None:
    with front(lambda _: Reply(b"ok", 200, ()), HttpLimits()) as url:
        with under(attack, int(url.rpartition(":")[2]), secs=0.3) as sent:
            assert sent.connections == 0
        assert sent.connections > 0


def test_a_ratio_is_of_all_turns_together() -> None:
    turns = Turns(ATTACKS[0], quiet_secs=[0.001] * 200, attacked_secs=[0.001] * 100 + [0.003] * 100)
    assert turns.ratio == pytest.approx(3)
    assert turns.is_bad
    turns.attacked_secs = [0.002] * 200
    assert not turns.is_bad
    turns.failed = 1
    assert turns.is_bad
