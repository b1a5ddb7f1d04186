"""`sagemaker_containers.beta.framework.errors`"""

from __future__ import annotations


class ClientError(Exception):
    """Something in the customer's script or request."""


class UnsupportedFormatError(Exception):
    """Raised by `encode` and `decode`, and by scripts."""

    def __init__(self, content_type: str, **kwargs: object) -> None:
        self.message = (
            f"Content type {content_type} is not supported by this framework: send another, or give the script an "
            "input_fn that reads it or an output_fn that writes it."
        )
        super().__init__(self.message, **kwargs)
