"""Fails with a status of its own."""

from mms.service import PredictionException


def handle(data, context):
    if data is not None:
        raise PredictionException("Some Prediction Error", 599)
