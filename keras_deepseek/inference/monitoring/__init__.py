"""The records of requests and of the engine: counters, logs and traces."""
