"""Serve the sample models, all of them loaded, until Ctrl-C."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from polyhost.config import Config

MODELS = Path("samples/models")
HOUSE = "1998,2150,3,2.5,0.4,2"
# Model, words, Content-Type, curl's way to give the body.
TRY = (
    ("houston", "XGBoost: a price for a house in Houston", "text/csv", f"-d {HOUSE}"),
    ("boston", "XGBoost: the same house in Boston", "text/csv", f"-d {HOUSE}"),
    ("house_preprocessor", "scikit-learn: a house with deck, without porch, made ready", "text/csv", f"-d {HOUSE},y,n"),
    ("house_linear_learner", "linear learner: eight prepared features", "text/csv", "-d 0.4,0.3,-0.2,0.1,0,1,1,0"),
    ("house_network", "ONNX: a price in Denver", "application/json", f"-d '[[{HOUSE}]]'"),
    ("listing_tone", "own script: the tone of a description", "application/json",
     """-d '{"text": "A sunny, charming house."}'"""),
    ("squeezenet", "MXNet: the five best classes of a picture (random weights!)", "application/x-image",
     "--data-binary @samples/models/picture.png"),
)  # fmt: skip


def main() -> int:
    if "--port" not in sys.argv and not {"POLYHOST_PORT", "SAGEMAKER_BIND_TO_PORT"} & set(os.environ):
        sys.argv += ["--port", "8080"]
    config = Config.build(
        {"port": [sys.argv[sys.argv.index("--port") + 1]] if "--port" in sys.argv else None}, os.environ
    )
    server = subprocess.Popen(
        [sys.executable, "-m", "polyhost", "serve", *sys.argv[1:]],
        stdout=subprocess.PIPE,
        text=True,
        env={"POLYHOST_MODEL_ROOT": str(MODELS.resolve()), **os.environ},
    )
    # Ctrl-C reaches the server by itself; it ends when all its processes have ended, and so do we.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    for line in server.stdout:
        print(line, end="", flush=True)
        if "ready on" in line:
            with ThreadPoolExecutor(1) as background:
                background.submit(load_and_tell, config)
                for later in server.stdout:
                    print(later, end="", flush=True)
    return server.wait()


def load_and_tell(config: Config) -> None:
    names = sorted(path.name for path in MODELS.iterdir() if path.is_dir())
    with ThreadPoolExecutor(2) as pool:
        statuses = dict(zip(names, pool.map(lambda name: load(config, name), names), strict=True))
    base = f"http://{config.host}:{config.port}"
    lines = [f"\n{sum(status == 200 for status in statuses.values())} of {len(names)} models are loaded. Try:\n"]
    for name, words, content_type, body in TRY:
        if statuses.get(name) == 200:
            lines.append(
                f"  # {words}\n  curl -s {base}/models/{name}/invoke -H 'Content-Type: {content_type}' {body}\n"
            )
    lines.append(f"  # the list\n  curl -s {base}/models\n\nCtrl-C stops everything.\n")
    print("\n".join(lines), flush=True)


def load(config: Config, name: str) -> int:
    connection = http.client.HTTPConnection(config.host, config.port, timeout=120)
    body = json.dumps({"model_name": name, "url": str((MODELS / name).resolve())})
    try:
        connection.request("POST", "/models", body, {"Content-Type": "application/json"})
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())
