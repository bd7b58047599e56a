"""A parameter server: a chief with the data, workers that compute, servers with the variables.

The chief runs the script. Its `ServedStep` takes the place of the training step, and gives each
batch to the `Dispatcher`. The dispatcher records which worker computes which batch, which updates
are made, and which batches must be computed again. Workers compute gradients. Servers hold the
variables and the optimizer, and make the updates.

An `Engine` starts workers and servers, and its `Workers` carry messages to them. There are two:

- `ray_engine`, on JAX and PyTorch. Each worker process runs a `Worker`, which has a copy of the
  model, and each server process a `ShardServer`. Only `ray_actors` names Ray.
- `coordinator_engine`, on TensorFlow. Workers run the chief's `CoordinatorStep` on the variables
  that a `RemoteModel` has put on the servers.
"""
