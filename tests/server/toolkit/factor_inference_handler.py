"""A framework's own inference handler: multiplies by the number in `factor.txt`."""

from pathlib import Path

from sagemaker_inference import decoder, encoder
from sagemaker_inference.default_inference_handler import DefaultInferenceHandler


class FactorInferenceHandler(DefaultInferenceHandler):
    def default_model_fn(self, model_dir, context=None):
        return float(Path(model_dir, "factor.txt").read_text())

    def default_input_fn(self, input_data, content_type, context=None):
        return decoder.decode(input_data, content_type)

    def default_predict_fn(self, data, model, context=None):
        return data * model

    def default_output_fn(self, prediction, accept, context=None):
        return encoder.encode(prediction, accept)
