"""Models of data, compiled into blobs that one small library in C checks and predicts with."""
