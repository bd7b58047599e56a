"""Readers of environments that may tell a process its rank, one file for each launcher.

Each reads its own environment variables into `ClusterHints`. `cluster_resolver` compares and
combines the hints.
"""
