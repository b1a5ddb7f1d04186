"""Serve the sample models as an endpoint, until Ctrl-C; print calls to try."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from polyhost.config import Config

MODELS = Path("samples/models")
STATE = Path(".state")
HOUSE = "1998,2150,3,2.5,0.4,2"
# Target model, words, Content-Type, curl's way to give the body.
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
BOTO3 = """  # the same by boto3
  {python} - <<'PYTHON'
import boto3
runtime = boto3.client("sagemaker-runtime", endpoint_url="{base}", region_name="us-east-1",
                       aws_access_key_id="any", aws_secret_access_key="any")
answer = runtime.invoke_endpoint(EndpointName="{endpoint}", TargetModel="houston.tar.gz",
                                 ContentType="text/csv", Body="{house}")
print(answer["Body"].read().decode())
PYTHON
"""


def main() -> int:
    if "--port" not in sys.argv and not {"POLYHOST_PORT", "SAGEMAKER_BIND_TO_PORT"} & set(os.environ):
        sys.argv += ["--port", "8080"]
    environ = {"POLYHOST_MODELS": str(MODELS), "POLYHOST_STATE_DIR": str(STATE), **os.environ}
    config = Config.build({"port": [sys.argv[sys.argv.index("--port") + 1]] if "--port" in sys.argv else None}, environ)
    server = subprocess.Popen(
        [sys.executable, "-m", "polyhost", "serve", *sys.argv[1:]],
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    )
    # Ctrl-C reaches the server by itself; it ends when all its processes have ended, and so do we.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    for line in server.stdout:
        print(line, end="", flush=True)
        if "ready on" in line:
            tell(config)
    return server.wait()


def tell(config: Config) -> None:
    names = sorted(path.name.removesuffix(".tar.gz") for path in MODELS.glob("*.tar.gz"))
    base = f"http://{config.host}:{config.port}"
    lines = [
        f"\n{len(names)} models are in the endpoint {config.endpoint_name}, each loaded when it is first asked. Try:\n"
    ]
    for name, words, content_type, body in TRY:
        if name in names:
            lines.append(
                f"  # {words}\n  curl -s {base}/invocations -H 'X-Amzn-SageMaker-Target-Model: {name}.tar.gz' \\\n"
                f"       -H 'Content-Type: {content_type}' {body}\n"
            )
    lines.append(
        BOTO3.format(python=os.path.relpath(sys.executable), base=base, endpoint=config.endpoint_name, house=HOUSE)
    )
    lines.append("Ctrl-C stops everything.\n")
    print("\n".join(lines), flush=True)


if __name__ == "__main__":
    sys.exit(main())
