"""Asks a server with MLServer's own codecs: `python mlserver_cases.py URL`; the last line is JSON."""

import json
import sys
import urllib.request

import numpy as np
import pandas as pd
from mlserver.codecs import NumpyRequestCodec, PandasCodec
from mlserver.types import InferenceResponse

HOUSES = [[1998, 2150, 3, 2.5, 0.4, 2], [1951, 900, 2, 1.1, 0.1, 0]]


def ask(url, model, request):
    body = request.model_dump_json(exclude_none=True).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v2/models/polyhost/{model}/infer", body)) as answer:
        return InferenceResponse.model_validate_json(answer.read())


def main(url):
    frame = pd.DataFrame(HOUSES, columns=[f"c{place}" for place in range(6)])
    rows = NumpyRequestCodec.encode_request(np.array(HOUSES))
    texts = PandasCodec.encode_request(frame.assign(deck=["y", "n"], porch=["n", "y"]), use_bytes=False)
    results = {
        "rows": NumpyRequestCodec.decode_response(ask(url, "boston.tar.gz", rows)).tolist(),
        "columns": NumpyRequestCodec.decode_response(ask(url, "house_preprocessor.tar.gz", texts)).tolist(),
        "frame": PandasCodec.decode_response(ask(url, "boston.tar.gz", rows)).to_dict(orient="list"),
    }
    sys.stdout.write(json.dumps(results))


main(sys.argv[1])
