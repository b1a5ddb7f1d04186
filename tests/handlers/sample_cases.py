"""Makes the sample models of this Python's frameworks and asks each: `python sample_cases.py FOLDER`; prints JSON."""

import json
import re
import subprocess
import sys
from pathlib import Path

from polyhost_handlers.auto import AutoHandler
from polyhost_handlers.base import ModelSource, Request

SCRIPT = Path(__file__).parents[2] / "scripts" / "sample_frameworks.py"
HOUSE = {"inputs": [[1998.0, 2150.0, 3.0, 2.5, 0.4, 2.0]]}


def main(folder):
    subprocess.run([sys.executable, "-W", "ignore", SCRIPT, folder, folder / ".complete"], check=True)
    prices = {}
    for model in sorted(path for path in folder.iterdir() if path.is_dir()):
        handler = AutoHandler.load(ModelSource(model, "m", {}))
        answer = handler.predict(Request(json.dumps(HOUSE).encode(), "application/json"))
        prices[model.name] = [handler.kind, float(re.search(rb"\d+(\.\d+)?", answer.body)[0])]
    sys.stdout.write("\n" + json.dumps(prices))


main(Path(sys.argv[1]))
