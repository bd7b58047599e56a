"""The processes and devices among which a training is divided.

- `environment` and `slurm` read launchers' environments. `cluster_resolver` combines them with the
  arguments into a `ClusterSpec`: the strategy, the world size and the rank.
- `start_processes` joins the processes. `evaluate_together` has them evaluate and predict.
- `placement` chooses the devices of this process: `device` by kind, `layer_placement` by layer.
- `parameter_server` has the public settings of parameter servers. The servers themselves are in
  `training/parameter_server/`.
"""
