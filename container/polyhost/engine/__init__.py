"""What runs the models: the real Multi Model Server (mms)."""
