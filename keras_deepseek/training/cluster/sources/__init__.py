"""Who may say where a process stands among those that train together: one file a source.

Each reads its own variables into `Claims` and knows nothing of the others; `cluster_resolver` puts
them together.
"""
