"""A stand-in for uv, which needs no network and takes no time."""

from __future__ import annotations

import sys
from pathlib import Path

# It makes an environment that is this one, and writes down what it was asked to install. Where UV_GATE names a pipe, it
# first waits until somebody has opened that.
_UV = f"""#!/bin/sh
case $1 in
  venv)
    for place; do :; done
    mkdir -p "$place/bin" "$place/lib/python3.11/site-packages"
    printf '#!/bin/sh\\nexec {sys.executable} "$@"\\n' > "$place/bin/python"
    chmod +x "$place/bin/python" ;;
  pip)
    echo "$@" >> "$UV_LOG"
    [ -z "$UV_GATE" ] || cat "$UV_GATE"
    echo end >> "$UV_LOG"
    exit "${{UV_CODE:-0}}" ;;
esac
"""


def put_uv(folder: Path) -> None:
    """For a PATH."""
    (folder / "uv").write_text(_UV)
    (folder / "uv").chmod(0o755)
