"""A parameter server on Ray: one chief with the data, workers with the model, servers with shards.

The chief runs the script. Its `ServedStep` stands in the place of the training step, and hands each
batch, by the `Dispatcher`, to a `Worker`, which computes gradients and pushes them to the
`ShardServer` of each variable, where the optimizer is. `ray_actors` alone names Ray.
"""
