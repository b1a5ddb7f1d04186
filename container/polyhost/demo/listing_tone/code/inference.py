"""A customer's own script: how warmly is a house described? Counts words; the modules beside it are its own."""

import json
import os

from words import words_of  # beside this file, and this model's alone


def model_fn(model_dir):
    with open(os.path.join(model_dir, "weights.json")) as file:
        return json.load(file)


def input_fn(body, content_type):
    if content_type != "application/json":
        raise ValueError(f"send application/json, not {content_type}")
    return json.loads(body)["text"]


def predict_fn(text, weights):
    score = sum(weights.get(word, 0) for word in words_of(text))
    return {"tone": "warm" if score > 0 else "plain", "score": score}


def output_fn(prediction, accept):
    return json.dumps(prediction), "application/json"
