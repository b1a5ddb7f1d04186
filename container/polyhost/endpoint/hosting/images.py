"""
What the name of a container's image says about its models. Polyhost runs no images: its handlers do what AWS's do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# The built-in algorithms, by the names of their repositories. Images of frameworks (scikit-learn, MXNet, PyTorch …)
# run their users' scripts: what lies in each archive says more than they do.
_ALGORITHMS = {
    "xgboost": "xgboost",
    "sagemaker-xgboost": "xgboost",
    "linear-learner": "linear-learner",
}
_SCRIPT_VARIABLES = ("SAGEMAKER_PROGRAM", "SAGEMAKER_SUBMIT_DIRECTORY")
# REGISTRY/NAMESPACE/REPOSITORY:TAG@DIGEST; a registry may have a port.
_REPOSITORY = re.compile(r"(?:.*/)?(?P<repository>[^/:@]+)(?::[^/:@]*)?(?:@.*)?")


def handler_of(image: str, environ: Mapping[str, str]) -> str:
    """
    The handler that an image stands for, "" where each archive tells.

    POLYHOST_HANDLER in the container's Environment names one, as it does in our image on AWS. With a script of the
    user's own the image is that of a framework, whatever its name.
    """
    if told := environ.get("POLYHOST_HANDLER", ""):
        return "" if told == "auto" else told
    if any(environ.get(variable) for variable in _SCRIPT_VARIABLES):
        return ""
    match = _REPOSITORY.fullmatch(image)
    return _ALGORITHMS.get(match["repository"], "") if match else ""
