"""
ResNet-18 and SqueezeNet as MXNet Module checkpoints. Their weights are random: the answers mean nothing.

Runs in MXNet's own environment (Python 3.11 at most, numpy 1.23).
"""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet.gluon.model_zoo import vision
from PIL import Image

SEED = 20261121
CLASSES = 1000
SHAPE = (1, 3, 224, 224)
NETWORKS = {"resnet_18": ("resnet-18", vision.resnet18_v1), "squeezenet": ("squeezenet", vision.squeezenet1_1)}


def main() -> None:
    models = Path(sys.argv[1])
    for name, (prefix, build) in NETWORKS.items():
        folder = models / name
        folder.mkdir(parents=True, exist_ok=True)
        mx.random.seed(SEED)
        write_checkpoint(build(classes=CLASSES), folder, prefix)
        with tarfile.open(models / f"{name}.tar.gz", "w:gz") as archive:
            for path in sorted(folder.iterdir()):
                archive.add(path, path.name)
    pixels = np.random.default_rng(SEED).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((360, 240)).save(models / "picture.png")
    (models / ".complete-mxnet").touch()


def write_checkpoint(network: object, folder: Path, prefix: str) -> None:
    """`PREFIX-symbol.json` ending in a softmax, `PREFIX-0000.params`, `PREFIX-shapes.json`, `synset.txt`."""
    network.initialize(mx.init.Xavier())
    network(mx.nd.zeros(SHAPE))
    symbol = mx.sym.softmax(network(mx.sym.var("data")), name="prob")
    parameters = network.collect_params()
    arguments = {name: parameters[name].data() for name in symbol.list_arguments() if name != "data"}
    auxiliaries = {name: parameters[name].data() for name in symbol.list_auxiliary_states()}
    mx.model.save_checkpoint(str(folder / prefix), 0, symbol, arguments, auxiliaries)
    (folder / f"{prefix}-shapes.json").write_text(json.dumps([{"shape": SHAPE, "name": "data"}]))
    (folder / "synset.txt").write_text("".join(f"class{number:04d} random weights\n" for number in range(CLASSES)))


if __name__ == "__main__":
    main()
