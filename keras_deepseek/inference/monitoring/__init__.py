"""What is noted of requests and of the engine: traces, logs, numbers."""
