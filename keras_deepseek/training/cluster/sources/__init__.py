"""The sources that may tell a process its place among the processes of a training, one file each.

Each reads its own environment variables into `Claims`. `cluster_resolver` compares and combines the
claims.
"""
