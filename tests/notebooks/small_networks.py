"""
`python small_networks.py FOLDER`, in MXNet's Python: two small networks in place of its model zoo's, and a picture.

Prints, for each network, the five best classes of the picture with their probabilities, by MXNet's Module.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

import mxnet as mx  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

SIDE = 224
CLASSES = [f"n{number:08} thing {number}" for number in range(20)]


def make(folder: Path, seed: int, pixels: np.ndarray) -> list[tuple[str, float]]:
    mx.random.seed(seed)
    network = mx.sym.Convolution(mx.sym.var("data"), kernel=(16, 16), stride=(16, 16), num_filter=4, name="conv")
    network = mx.sym.Activation(network, act_type="relu")
    network = mx.sym.FullyConnected(network, num_hidden=len(CLASSES), name="fc")
    module = mx.mod.Module(mx.sym.softmax(network), label_names=None)
    module.bind(for_training=False, data_shapes=[("data", pixels.shape)])
    module.init_params(mx.init.Uniform(0.02))
    folder.mkdir()
    module.save_checkpoint(str(folder / folder.name), 0)
    (folder / f"{folder.name}-shapes.json").write_text(json.dumps([{"shape": pixels.shape, "name": "data"}]))
    (folder / "synset.txt").write_text("\n".join(CLASSES))
    chances = module.predict(mx.io.NDArrayIter(pixels)).asnumpy()[0]
    return [(CLASSES[index], float(chances[index])) for index in chances.argsort()[::-1][:5]]


def main() -> None:
    folder = Path(sys.argv[1])
    # Of the networks' own size, so that nobody resizes it, and without loss.
    picture = np.random.default_rng(1).integers(0, 256, (7, 7, 3)).astype(np.uint8).repeat(32, 0).repeat(32, 1)
    Image.fromarray(picture).save(folder / "picture.png")
    pixels = picture.transpose(2, 0, 1)[None].astype(np.float32)
    answers = {name: make(folder / name, seed, pixels) for seed, name in enumerate(("resnet_18", "squeezenet"))}
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main()
