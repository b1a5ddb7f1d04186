"""What runs the models: our own engine (native), or the real Multi Model Server (mms)."""
