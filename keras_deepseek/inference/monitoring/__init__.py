"""Monitoring of requests and of the engine: logs, traces and metrics."""
