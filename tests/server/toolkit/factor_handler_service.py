"""A framework's handler service, as those of AWS's own containers are."""

import factor_inference_handler
from sagemaker_inference.default_handler_service import DefaultHandlerService
from sagemaker_inference.transformer import Transformer


class HandlerService(DefaultHandlerService):
    def __init__(self):
        super().__init__(
            transformer=Transformer(default_inference_handler=factor_inference_handler.FactorInferenceHandler())
        )
