"""Traces of training steps: the trace files of XLA, layers by scope, and shares of the time."""
