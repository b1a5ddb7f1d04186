"""What the entry point of a toolkit-based container does: `python boot.py HANDLER_SERVICE`."""

import os
import sys
import tempfile

from sagemaker_inference import model_server

# Not in /etc, where there is one for all tests that run on this machine.
model_server.MMS_CONFIG_FILE = os.path.join(tempfile.gettempdir(), "mms.properties")
model_server.start_model_server(handler_service=sys.argv[1])
