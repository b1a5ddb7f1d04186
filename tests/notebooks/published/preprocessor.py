# The script of the pipeline's first container, in the shape of the one that AWS publishes: pandas in, columns by their
# names, the container's own Response out.
from __future__ import print_function

import argparse
import json
import os
from io import StringIO

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.externals import joblib
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sagemaker_containers.beta.framework import content_types, encoders, env, modules, transformer, worker

# A CSV comes without a header: these are its columns.
NUMBERS = ['YEAR_BUILT', 'SQUARE_FEET', 'NUM_BEDROOMS', 'NUM_BATHROOMS', 'LOT_ACRES', 'GARAGE_SPACES']
CATEGORIES = ['FRONT_PORCH', 'DECK']
LABEL = 'PRICE'

if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--model-dir', type=str, default=os.environ['SM_MODEL_DIR'])
    parser.add_argument('--train', type=str, default=os.environ['SM_CHANNEL_TRAIN'])
    args = parser.parse_args()

    files = [os.path.join(args.train, name) for name in os.listdir(args.train)]
    houses = pd.concat([pd.read_csv(file, header=None, names=NUMBERS + CATEGORIES + [LABEL]) for file in files])
    preprocessor = ColumnTransformer(
        transformers=[
            ('num', Pipeline(steps=[('scaler', StandardScaler())]), NUMBERS),
            ('cat', Pipeline(steps=[('onehot', OneHotEncoder(handle_unknown='ignore'))]), CATEGORIES)],
        remainder='drop')
    preprocessor.fit(houses)
    joblib.dump(preprocessor, os.path.join(args.model_dir, 'model.joblib'))


def input_fn(input_data, content_type):
    if content_type == 'text/csv':
        frame = pd.read_csv(StringIO(input_data), header=None)
        if len(frame.columns) == len(NUMBERS + CATEGORIES) + 1:
            frame.columns = NUMBERS + CATEGORIES + [LABEL]
        elif len(frame.columns) == len(NUMBERS + CATEGORIES):
            frame.columns = NUMBERS + CATEGORIES
        return frame
    raise ValueError('{} not supported by script!'.format(content_type))


def output_fn(prediction, accept):
    if accept == 'application/json':
        instances = [{'features': row} for row in prediction.tolist()]
        return worker.Response(json.dumps({'instances': instances}), mimetype=accept)
    if accept == 'text/csv':
        return worker.Response(encoders.encode(prediction, accept), mimetype=accept)
    raise RuntimeError('{} accept type is not supported by this script.'.format(accept))


def predict_fn(input_data, model):
    features = model.transform(input_data)
    if LABEL in input_data:
        return np.insert(features, 0, input_data[LABEL], axis=1)
    return features


def model_fn(model_dir):
    return joblib.load(os.path.join(model_dir, 'model.joblib'))
