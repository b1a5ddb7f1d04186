"""In which order a worker is sent what waits for it."""

from __future__ import annotations

import pytest
from polyhost.engine.native.messages import Load, Predict, ToWorker, Trim, Unload
from polyhost.engine.native.orders import OVERTAKING, Order, Waiting


def order(letter: str, number: int) -> Order:
    """By the first letter of what it is: a load, a call, an unload, a trim."""
    messages: dict[str, ToWorker] = {
        "l": Load(number, number, "", "", "", 1, False, False, 0),
        "c": Predict(number, number, []),
        "u": Unload(number, number),
        "t": Trim(number),
    }
    return Order(messages[letter], lambda _: None, 1.0)


@pytest.mark.parametrize(
    ("sent", "waiting", "numbers"),
    [
        ("", "", []),
        ("", "ccc", [0, 1, 2]),
        ("", "lcc", [1, 2, 0]),
        # Two loads at a time; the third one waits for the first one's answer.
        ("", "lll", [0, 1]),
        ("l", "ll", [0]),
        ("ll", "l", []),
        ("ll", "lcl", [1]),
        ("c", "lc", [1, 0]),
        # What comes after a load is not done before it, but for calls.
        ("", "lu", [0, 1]),
        ("ll", "lut", []),
        ("ll", "lutc", [3]),
        # What came before is.
        ("ll", "ul", [0]),
        ("", "utlc", [0, 1, 3, 2]),
    ],
)
def test_calls_go_before_loads(sent: str, waiting: str, numbers: list[int]) -> None:
    orders = Waiting()
    for number, letter in enumerate(waiting):
        orders.add(order(letter, number))
    assert _all_of(orders, [order(letter, 100 + number) for number, letter in enumerate(sent)]) == numbers
    assert len(orders) == len(waiting) - len(numbers)


def _all_of(orders: Waiting, sent: list[Order]) -> list[int]:
    numbers = []
    while (one := orders.next(sent)) is not None:
        sent.append(one)
        numbers.append(one.message.id)
    return numbers


def test_a_load_is_not_overtaken_for_ever() -> None:
    orders = Waiting()
    orders.add(order("l", 0))
    numbers = []
    for number in range(1, 2 * OVERTAKING):
        orders.add(order("c", number))
        one = orders.next([])
        assert one is not None
        numbers.append(one.message.id)
    assert numbers.index(0) == OVERTAKING


def test_what_is_of_other_models_is_given_away() -> None:
    orders = Waiting()
    for number, letter in enumerate("clutc"):
        orders.add(order(letter, number))
    orders.keep(4)
    assert [one.message.id for one in orders] == [4, 3]  # a trim is of no model
    assert [one.message.id for one in orders.taken_back()] == [4, 3]
    assert len(orders) == 0
