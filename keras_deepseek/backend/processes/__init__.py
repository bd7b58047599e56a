"""Processes that train together: rendezvous, sums, gradient compression."""
