"""
Write expected.json: what sagemaker_containers itself does, the package whose place `polyhost_handlers.aws` takes.

    uv venv --python 3.8 old
    uv pip install --python old/bin/python 'numpy<1.24' scipy 'flask<2' 'werkzeug<1' 'jinja2<3' 'markupsafe<2.1' \
        'itsdangerous<2' 'protobuf<3.21' six
    # its dependencies for training do not build any more: unpack sagemaker-containers 2.8.6.post2's sdist instead
    PYTHONPATH=sagemaker_containers-2.8.6.post2/src old/bin/python make_fixtures.py
"""

import json
import os

import numpy as np
from sagemaker_containers import _encoders, _env, _worker

HERE = os.path.dirname(os.path.abspath(__file__))
BODIES = {
    "text/csv": [
        "1,2,3", "1,2\n3,4\n", "1\n2\n3", "7", "1,a,3", "a,b", "02139,1E5", "nan,inf", "1,,3", "True,False",
        " 1 , 2 ", '"a,b",2', '"a ""b""",c', "1,2\r\n3,4\r\n", "\u00e9,\u00fc", "1;2",
    ],
    "application/json": ["[1, 2]", "[[1, 2.5]]", "7", '["a", 1]', '{"a": 1}', "null", "[null, 1]", "[]"],
}  # fmt: skip
# Python's repr of each, with numpy as np.
PREDICTIONS = [
    "[1, 2]", "[[1, 2.5], [3, 4]]", "['a,b', 'c\"']", "[['a', 1]]", "[[]]", "{'scores': np.arange(2)}",
    "np.array([1, 2])", "np.array([[0.5, 1e20]])", "np.array(['a', 'b'])", "np.array([True])", "np.array([np.nan])",
    "[None, 1.5]", "np.array([[1, 2], [3, 4]], dtype='int32')",
]  # fmt: skip
RESPONSES = [
    {"response": "a", "mimetype": "text/csv"},
    {"response": "a", "accept": "text/csv", "mimetype": "text/csv"},
    {"response": "[1]", "mimetype": "application/json"},
    {"response": "[1]"},
    {"response": ["a", "b"], "status": "400 BAD REQUEST", "headers": {"X-A": "1"}},
    {"response": "a", "headers": {"Content-Type": "image/png"}},
    {"response": "a", "headers": {"Content-Type": "image/png"}, "mimetype": "text/plain"},
    {"response": "\u00e9", "status": 503, "mimetype": "text/html"},
    {"response": "<a/>", "mimetype": "application/xml"},
    {"response": "<a/>", "mimetype": "image/svg+xml"},
    {},
]


def outcome(function, *arguments):
    try:
        return function(*arguments)
    except Exception as error:
        return {"raises": type(error).__name__}


def array_of(body, media_type):
    array = _encoders.decode(body, media_type)
    return {"kind": array.dtype.kind, "shape": array.shape, "values": repr(array.tolist())}


def answered(arguments):
    response = _worker.Response(**arguments)
    headers = {name: value for name, value in response.headers.items() if name != "Content-Length"}
    return {
        "status": int(response.status_code),
        "headers": headers,
        "mimetype": response.mimetype,
        "body": response.get_data().decode("latin-1"),
    }


expected = {
    "decode": [[name, body, outcome(array_of, body, name)] for name, bodies in BODIES.items() for body in bodies],
    "encode": [
        [name, text, outcome(_encoders.encode, eval(text), name)]
        for name in ("application/json", "text/csv", "image/png")
        for text in PREDICTIONS
    ],
    "responses": [[arguments, answered(arguments)] for arguments in RESPONSES],
    "serving_env": sorted(name for name in _env.ServingEnv() if name != "num_gpus"),
}
with open(os.path.join(HERE, "expected.json"), "w") as file:
    json.dump(expected, file, indent=1, sort_keys=True)
    file.write("\n")
assert np
