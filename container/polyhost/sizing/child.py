"""`polyhost serve` that ends with the process that started it: `python -m polyhost.sizing.child PARENT_PID serve …`."""

from __future__ import annotations

import signal
import sys

from polyhost.cli import main
from polyhost.processes import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(sys.argv.pop(1)), signal.SIGTERM)
    main()
