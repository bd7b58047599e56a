"""Requests, what lets them leave together and when, and the threads that run their batches."""
