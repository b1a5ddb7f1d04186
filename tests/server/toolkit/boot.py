"""What the entry point of a toolkit-based container does: `python boot.py HANDLER_SERVICE`."""

import os
import sys

from sagemaker_inference import model_server

if not os.access("/etc", os.W_OK):
    model_server.MMS_CONFIG_FILE = os.path.join(os.environ["TMPDIR"], "mms.properties")
model_server.start_model_server(handler_service=sys.argv[1])
