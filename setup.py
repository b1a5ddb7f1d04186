"""Compiles the library in C while the package is built; all else is in pyproject.toml."""

import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent / "build_backend"))
from polyhost_build import compile_library, foreign_tag

_LIBRARY = "polyhost_handlers/compiled/libtrees.so"


class BuildWithLibrary(build_py):
    def run(self) -> None:
        super().run()
        source = Path("handlers/polyhost_handlers/compiled/trees.c")
        target = Path("handlers" if self.editable_mode else self.build_lib) / _LIBRARY
        target.parent.mkdir(parents=True, exist_ok=True)
        compile_library(source, target)


class PlatformWheel(bdist_wheel):
    """The library is of one platform, and of any Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", foreign_tag() or super().get_tag()[2])


class WithLibrary(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(distclass=WithLibrary, cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": PlatformWheel})
