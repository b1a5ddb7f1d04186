"""Which variables of a container definition reach which process."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from polyhost.engine.native.pool import Environment

Variables = tuple[tuple[str, str], ...]

_OF_THE_LOADER = ("LD_", "PYTHON")
_AT_IMPORT = re.compile(r"(OMP|OPENBLAS|MKL|NUMEXPR|BLIS|VECLIB)_NUM_THREADS|MXNET_USE_OPERATOR_TUNING|LANG|LC_ALL|TZ")


def environment_for(python: str, variables: Variables, *, has_code: bool) -> Environment:
    """Where a model is loaded. Models of data alone never see what changes how Python itself starts."""
    return Environment(python, variables, has_code and without_loader_variables(variables) != variables)


def without_loader_variables(variables: Sequence[tuple[str, str]]) -> Variables:
    return tuple((name, value) for name, value in variables if not name.startswith(_OF_THE_LOADER))


def worker_variables(environment: Environment) -> Variables:
    """What counts for the workers of an environment."""
    return (
        environment.variables if environment.has_loader_variables else without_loader_variables(environment.variables)
    )


def template_variables(environment: Environment, *, is_hardened: bool) -> Mapping[str, str]:
    """
    What the template of an environment is started with, besides the server's own.

    A hardened template runs nothing that a container definition names, and a variable can name a library to load. So
    it gets only what numeric libraries read at their import; its workers get the rest once they are confined.
    """
    variables = worker_variables(environment)
    return {name: value for name, value in variables if not is_hardened or _AT_IMPORT.fullmatch(name)}
