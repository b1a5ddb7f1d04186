"""Wheels that bring the same import."""

from __future__ import annotations

from packaging.utils import canonicalize_name

# Never are two of a family installed at once.
_SAME_IMPORT = (
    ("faiss-cpu", "faiss-gpu"),
    ("lightgbm", "lightgbm-cpu", "lightgbm-gpu"),
    ("mlflow", "mlflow-skinny"),
    ("mxnet", "mxnet-mkl", "mxnet-native"),
    ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
    ("pillow", "pillow-simd"),
    ("psycopg2", "psycopg2-binary"),
    ("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tensorflow-intel"),
    ("xgboost", "xgboost-cpu"),
)


def same_import(name: str) -> tuple[str, ...]:
    """The distribution of that name, first, and the others that bring the same import; canonical names."""
    own = canonicalize_name(name)
    return (own, *(other for family in _SAME_IMPORT if own in family for other in family if other != own))
