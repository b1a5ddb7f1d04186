"""
One format under atheris: python tests/fuzz/with_atheris.py FORMAT SECS CORPUS_FOLDER

What an input does that none may is written to tests/fuzz/failed/FORMAT, where the tests find it from then on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))
with atheris.instrument_imports(include=["polyhost_handlers"]):
    from fuzz.formats import FOLDER, FORMATS

# More than a format needs to say anything; larger inputs only make each try slower.
_MOST_BYTES = 65_536
_MOST_SECS = 10
_MOST_MIB = 1024


def main(name: str, secs: str, corpus: str) -> None:
    kept = FOLDER / "failed" / name
    kept.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(FORMATS[name].contents()):
        (Path(corpus) / f"seed-{number}").write_bytes(data)
    limits = {"max_total_time": secs, "max_len": _MOST_BYTES, "timeout": _MOST_SECS, "rss_limit_mb": _MOST_MIB}
    options = [*(f"-{limit}={value}" for limit, value in limits.items()), f"-artifact_prefix={kept}/", corpus]
    atheris.Setup([sys.argv[0], *options], FORMATS[name].try_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
