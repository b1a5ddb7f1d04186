"""
The two forms of tests that can go on for as long as one likes.

`make test` runs the short form. `make test LONG=1`, CI's second stage, runs the long one: more examples, more calls,
more minutes. What is asserted is the same.
"""

from __future__ import annotations

import os
from typing import TypeVar

from hypothesis import HealthCheck, settings

Number = TypeVar("Number", int, float)

FORM = os.environ.get("POLYHOST_TESTS_FORM")
# `make fuzz` runs the tests again and again, with other examples each time.
IS_LONG = FORM in ("long", "fuzz")
# How long a test goes on that `make fuzz` has given a time; None: as long as it takes.
FUZZ_SECS = int(os.environ["POLYHOST_FUZZ_SECS"]) if "POLYHOST_FUZZ_SECS" in os.environ else None
# How many times as many examples Hypothesis tries.
_MORE_EXAMPLES = 15


def use_profile() -> None:
    """
    Hypothesis's settings of this form.

    The short form tries the same examples each time, so that a change is judged by what it changes. A deadline would
    judge the machine: there is none.
    """
    quiet = [HealthCheck.too_slow]
    settings.register_profile("short", deadline=None, derandomize=True, database=None, suppress_health_check=quiet)
    settings.register_profile("long", deadline=None, print_blob=True, suppress_health_check=quiet)
    settings.load_profile("long" if IS_LONG else "short")


def examples(count: int) -> int:
    """How many examples to try where `count` are enough for the short form."""
    return count * _MORE_EXAMPLES if IS_LONG else count


def by_form(*, short: Number, long: Number) -> Number:
    return long if IS_LONG else short
