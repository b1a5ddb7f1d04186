"""The Open Inference Protocol, version 2: what KServe's, Triton's and MLServer's clients speak."""
