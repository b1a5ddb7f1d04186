"""Asks MLflow's handler in MLflow's own environment: `python mlflow_cases.py FOLDER`; the last line is JSON."""

import io
import json
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import infer_signature
from mlflow.pyfunc import scoring_server
from polyhost_handlers.artifacts import recognise
from polyhost_handlers.base import ModelSource, Request
from polyhost_handlers.errors import HandlerError
from polyhost_handlers.mlflow_handler import MLflowHandler
from sklearn.linear_model import LinearRegression

FRAME = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [2.0, 1.0, 5.0]})
ESTIMATOR = LinearRegression().fit(FRAME, FRAME["a"] * 3 + FRAME["b"])


class Doubler(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        factor = (params or {}).get("factor", 2)
        return model_input * factor


def own_answer(model, data):
    """What MLflow's scoring server writes."""
    text = io.StringIO()
    scoring_server.predictions_to_json(model.predict(data), text)
    return json.loads(text.getvalue())


def asked(handler, body, content_type="application/json", **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        return json.loads(handler.predict(Request(body.encode(), content_type, headers=named)).body)
    except HandlerError as error:
        return [error.status, error.message]


def tensors(columns):
    """As the Open Inference Protocol has them."""
    described = [
        {"name": name, "shape": [*np.shape(values)], "datatype": "FP64", "data": np.ravel(values).tolist()}
        for name, values in columns.items()
    ]
    return json.dumps({"inputs": described})


def main(folder):
    signature = infer_signature(FRAME, ESTIMATOR.predict(FRAME))
    mlflow.sklearn.save_model(ESTIMATOR, folder / "named", signature=signature)
    mlflow.pyfunc.save_model(
        folder / "own",
        python_model=Doubler(),
        signature=infer_signature(np.ones((1, 2)), np.ones((1, 2)), params={"factor": 2}),
    )
    assert recognise(folder / "own", {}).name == "mlflow"
    named, own = (MLflowHandler.load(ModelSource(folder / name, "m", {})) for name in ("named", "own"))
    split = json.loads(FRAME.to_json(orient="split", index=False))
    turned = {"columns": ["b", "a"], "data": FRAME[["b", "a"]].to_numpy().tolist()}
    plain = mlflow.pyfunc.load_model(str(folder / "named"))
    results = {
        "expected": own_answer(plain, FRAME),
        "dataframe_split": asked(named, json.dumps({"dataframe_split": split})),
        "turned": asked(named, json.dumps({"dataframe_split": turned})),
        "dataframe_records": asked(named, json.dumps({"dataframe_records": FRAME.to_dict(orient="records")})),
        "instances": asked(named, json.dumps({"instances": FRAME.to_dict(orient="records")})),
        "inputs": asked(named, json.dumps({"inputs": FRAME.to_dict(orient="list")})),
        "CSV": asked(named, FRAME.to_csv(index=False), "text/csv"),
        "tensors": asked(named, tensors({name: FRAME[[name]] for name in ("b", "a")})),
        "rows alone": asked(named, "1.0,2.0\n2.0,1.0\n3.0,5.0", "text/csv", x_polyhost_csv_header="absent"),
        "one tensor": asked(own, tensors({"any": [[1.0, 2.0]]})),
        "one row alone": asked(own, "1.0,2.0", "text/csv", x_polyhost_csv_header="absent"),
        "no rows alone": asked(own, "a,b", "text/csv", x_polyhost_csv_header="absent"),
        "unknown tensor": asked(named, tensors({"a": [1.0], "c": [1.0]})),
        "own": asked(own, json.dumps({"inputs": [[1.0, 2.0]]})),
        "own instances": asked(own, json.dumps({"instances": [[1.0, 2.0]]})),
        "own with params": asked(own, json.dumps({"inputs": [[1.0, 2.0]], "params": {"factor": 5}})),
        "missing column": asked(named, json.dumps({"dataframe_split": {"columns": ["a"], "data": [[1.0]]}})),
        "text for a number": asked(named, json.dumps({"dataframe_split": {"columns": ["a", "b"], "data": [["x", 1]]}})),
        "no form": asked(named, json.dumps([[1, 2]])),
        "two forms": asked(named, json.dumps({"inputs": [], "instances": []})),
        "params that are no object": asked(own, json.dumps({"inputs": [[1.0, 2.0]], "params": [1]})),
        "no JSON": asked(named, "{"),
        "signature": [named.signature(), own.signature()],
    }
    mlmodel = (folder / "named" / "MLmodel").read_text()
    damaged = {
        "cut off": mlmodel[:40], "no YAML": "{", "empty": "", "a list": "[]", "no flavour": "flavors: {}\n",
        "nobody's module": mlmodel.replace("mlflow.sklearn", "no.module"),
    }  # fmt: skip
    for name, text in damaged.items():
        (folder / "named" / "MLmodel").write_text(text)
        try:
            MLflowHandler.load(ModelSource(folder / "named", "m", {}))
        except HandlerError as error:
            results[f"damaged: {name}"] = [type(error).__name__, error.message]
    sys.stdout.write(json.dumps(results))


main(Path(sys.argv[1]))
