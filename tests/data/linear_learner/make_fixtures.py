"""
Makes the archives beside this file and expected.json: `.venv/envs/mxnet-1.9/bin/python make_fixtures.py`.

MXNet 1.9.1 writes the graphs and the parameters, and what it predicts itself are the right answers. The layout is the
one of SageMaker's own artifacts: `data`, `fc0_weight` of (features, outputs), `dot`, `fc0_bias` of (1, outputs),
`broadcast_add`, an output operator with `out_label`, packed as the zip `model_algo-1`.
"""

from __future__ import annotations

import json
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

import mxnet as mx  # noqa: E402
import numpy as np  # noqa: E402

HERE = Path(__file__).parent
RANDOM = np.random.default_rng(20261126)
# As many features as classes: a transposed weight would still fit.
FEATURES = 3
ROWS = RANDOM.normal(size=(5, FEATURES)).round(3)
PARAMS = {
    "regressor": {"predictor_type": "regressor", "loss_type": "squared_loss", "threshold": None},
    "regressor-absolute": {"predictor_type": "regressor", "loss_type": "absolute_loss", "threshold": None},
    "regressor-huber": {"predictor_type": "regressor", "loss_type": "huber_loss", "threshold": None},
    "binary": {"predictor_type": "binary_classifier", "loss_type": "logistic", "threshold": 0.8},
    "binary-hinge": {"predictor_type": "binary_classifier", "loss_type": "hinge_loss", "threshold": -1.2},
    "multiclass": {"predictor_type": "multiclass_classifier", "loss_type": "softmax_loss", "threshold": None},
    "fully-connected": {"predictor_type": "multiclass_classifier", "loss_type": "softmax_loss", "threshold": None},
    "transposed-dot": {"predictor_type": "multiclass_classifier", "loss_type": "softmax_loss", "threshold": None},
}


def network(name: str, outputs: int) -> tuple[Any, Any]:
    """The whole graph, and the part of it that predicts."""
    data, label = mx.sym.var("data"), mx.sym.var("out_label")
    shape = (outputs, FEATURES) if name in ("fully-connected", "transposed-dot") else (FEATURES, outputs)
    weight = mx.sym.var("fc0_weight", shape=shape)
    if name == "fully-connected":
        linear = mx.sym.FullyConnected(data, weight=weight, num_hidden=outputs, name="fc0")
    else:
        product = mx.sym.dot(data, weight, transpose_b=name == "transposed-dot")
        linear = mx.sym.broadcast_add(product, mx.sym.var("fc0_bias", shape=(1, outputs), lr_mult=10.0))
    if name == "regressor-huber":
        return mx.sym.MakeLoss(mx.sym.smooth_l1(mx.sym.elemwise_sub(linear, label), scalar=1.0)), linear
    output = {
        "regressor": mx.sym.LinearRegressionOutput,
        "regressor-absolute": mx.sym.MAERegressionOutput,
        "binary": mx.sym.LogisticRegressionOutput,
        "binary-hinge": mx.sym.SVMOutput,
    }.get(name, mx.sym.SoftmaxOutput)(linear, label)
    return output, output


def main() -> None:
    expected: dict[str, Any] = {"rows": ROWS.tolist(), "scores": {}}
    for name, params in PARAMS.items():
        outputs = FEATURES if params["predictor_type"] == "multiclass_classifier" else 1
        whole, predicting = network(name, outputs)
        shapes = dict(zip(whole.list_arguments(), whole.infer_shape(data=(1, FEATURES))[0], strict=True))
        arguments = {
            each: mx.nd.array(RANDOM.normal(size=shapes[each]).round(3)) for each in ("fc0_weight", "fc0_bias")
        }
        label_names = ["out_label"] if "out_label" in predicting.list_arguments() else None
        module = mx.mod.Module(predicting, data_names=["data"], label_names=label_names)
        module.bind([("data", ROWS.shape)], for_training=False)
        module.set_params(arguments, {}, allow_missing=True)
        module.forward(mx.io.DataBatch([mx.nd.array(ROWS)]), is_train=False)
        expected["scores"][name] = module.get_outputs()[0].asnumpy().astype(float).round(7).tolist()
        with tempfile.TemporaryDirectory() as folder:
            mx.model.save_checkpoint(f"{folder}/mx-mod", 0, whole, arguments, {}, remove_amp_cast=True)
            Path(folder, "additional-params.json").write_text(json.dumps(params))
            manifest = {"mx-mod": "mxnet_module", "additional-params.json": "json", "version": 1}
            Path(folder, "manifest.json").write_text(json.dumps(manifest))
            with zipfile.ZipFile(HERE / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for path in sorted(Path(folder).iterdir()):
                    archive.write(path, path.name)
    (HERE / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
