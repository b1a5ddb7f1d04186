"""
A preprocessor in the shape of those that AWS publishes for scikit-learn's container: one file that trains and serves.

It is run as a program for training, so its own class is pickled as `__main__.Ratio`.
"""

import argparse
import json
import os
from io import StringIO

import numpy as np
import pandas as pd
from sagemaker_containers.beta.framework import (
    encoders,
    worker,
)
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.externals import joblib
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

# The rows have no header, so the names are here.
feature_columns_names = ["city", "feet", "lot", "rooms"]
label_column = "price"
feature_columns_dtype = {"city": str, "feet": np.float64, "lot": np.float64, "rooms": np.float64}
label_column_dtype = {"price": np.float64}


class Ratio(BaseEstimator, TransformerMixin):
    """Feet a room, beside the columns there are."""

    def fit(self, table, y=None):
        return self

    def transform(self, table):
        return np.column_stack([table, table[:, 0] / table[:, 2]])


def merge_two_dicts(x, y):
    z = x.copy()
    z.update(y)
    return z


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--output-data-dir", type=str, default=os.environ.get("SM_OUTPUT_DATA_DIR"))
    parser.add_argument("--model-dir", type=str, default=os.environ.get("SM_MODEL_DIR"))
    parser.add_argument("--train", type=str, default=os.environ.get("SM_CHANNEL_TRAIN"))
    args = parser.parse_args()

    input_files = [os.path.join(args.train, name) for name in os.listdir(args.train)]
    raw_data = [
        pd.read_csv(
            name,
            header=None,
            names=feature_columns_names + [label_column],
            dtype=merge_two_dicts(feature_columns_dtype, label_column_dtype),
        )
        for name in input_files
    ]
    concat_data = pd.concat(raw_data)
    concat_data = concat_data.drop(label_column, axis=1)

    numeric_transformer = Pipeline(
        steps=[("imputer", SimpleImputer(strategy="median")), ("ratio", Ratio()), ("scaler", StandardScaler())]
    )
    categorical_transformer = Pipeline(
        steps=[
            ("imputer", SimpleImputer(strategy="constant", fill_value="missing")),
            ("onehot", OneHotEncoder(handle_unknown="ignore", sparse_output=False)),
        ]
    )
    preprocessor = ColumnTransformer(
        transformers=[
            ("num", numeric_transformer, ["feet", "lot", "rooms"]),
            ("cat", categorical_transformer, ["city"]),
        ]
    )
    preprocessor.fit(concat_data)
    joblib.dump(preprocessor, os.path.join(args.model_dir, "model.joblib"))


def input_fn(input_data, content_type):
    """Rows with or without the price, which is last."""
    if content_type == "text/csv":
        df = pd.read_csv(StringIO(input_data), header=None)
        if len(df.columns) == len(feature_columns_names) + 1:
            df.columns = feature_columns_names + [label_column]
        elif len(df.columns) == len(feature_columns_names):
            df.columns = feature_columns_names
        return df
    raise ValueError(f"{content_type} not supported by script!")


def output_fn(prediction, accept):
    """JSON is what one container hands to the next, unless it is told otherwise."""
    if accept == "application/json":
        instances = []
        for row in prediction.tolist():
            instances.append({"features": row})
        json_output = {"instances": instances}
        return worker.Response(json.dumps(json_output), mimetype=accept)
    if accept == "text/csv":
        return worker.Response(encoders.encode(prediction, accept), mimetype=accept)
    raise ValueError(f"{accept} accept type is not supported by this script.")


def predict_fn(input_data, model):
    """`transform`, where the default would call `predict`; the price comes back as the first column."""
    features = model.transform(input_data)
    if label_column in input_data:
        return np.insert(features, 0, input_data[label_column], axis=1)
    return features


def model_fn(model_dir):
    preprocessor = joblib.load(os.path.join(model_dir, "model.joblib"))
    return preprocessor
