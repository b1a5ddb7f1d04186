"""
Makes the index files of one release of faiss, and what it finds in them: `python make_fixtures.py OUT_DIR`.

Run once under faiss-cpu 1.5.3 (Python 3.7, numpy 1.21), the oldest that there is, and once under 1.8.0 (3.11, numpy
1.26). Every run writes `VERSION-KIND.index` and `VERSION.json` with the rows, and for each index the ids and the
distances of the five nearest vectors, as faiss's own search gives them; -1 where there are fewer.
"""

import json
import sys

import faiss
import numpy as np

FEATURES, COUNT, K = 4, 60, 5
RANDOM = np.random.RandomState(20261126)
TRAINING = RANDOM.normal(size=(400, FEATURES)).astype("float32")
VECTORS = RANDOM.normal(size=(COUNT, FEATURES)).astype("float32")
ROWS = RANDOM.normal(size=(6, FEATURES)).round(3).astype("float32")


def ivf(index, probes):
    index.train(TRAINING)
    index.nprobe = probes
    return index


def main():
    l2, inner = faiss.METRIC_L2, faiss.METRIC_INNER_PRODUCT
    centroids = [faiss.IndexFlatL2(FEATURES) for _ in range(3)] + [faiss.IndexFlatIP(FEATURES)]
    indexes = {
        "flat-l2": faiss.IndexFlatL2(FEATURES),
        "flat-ip": faiss.IndexFlatIP(FEATURES),
        "ivfflat": ivf(faiss.IndexIVFFlat(centroids[0], FEATURES, 8, l2), 3),
        "ivfflat-sparse": ivf(faiss.IndexIVFFlat(centroids[1], FEATURES, 20, l2), 6),
        "ivfflat-ip": ivf(faiss.IndexIVFFlat(centroids[3], FEATURES, 8, inner), 4),
        "ivfpq": ivf(faiss.IndexIVFPQ(centroids[2], FEATURES, 4, 2, 8), 2),
        "idmap": faiss.IndexIDMap(faiss.IndexFlatL2(FEATURES)),
    }
    expected = {"rows": ROWS.astype(float).round(3).tolist(), "found": {}}
    for name, index in indexes.items():
        if name == "idmap":
            index.add_with_ids(VECTORS, np.arange(COUNT)[::-1].copy())
        else:
            index.add(VECTORS[:9] if name == "ivfflat-sparse" else VECTORS)
        distances, ids = index.search(ROWS, K)
        faiss.write_index(index, f"{sys.argv[1]}/{faiss.__version__}-{name}.index")
        distances = [[float(f"{one:.9g}") if one < 1e30 else None for one in row] for row in distances]
        expected["found"][name] = {"count": int(index.ntotal), "ids": ids.tolist(), "distances": distances}
    with open(f"{sys.argv[1]}/{faiss.__version__}.json", "w") as file:
        file.write(json.dumps(expected) + "\n")


main()
