"""A parameter server: one chief with the data, workers that compute, servers with the variables.

The chief runs the script. Its `ServedStep` stands in the place of the training step, and hands each
batch to a worker, which computes gradients for the servers, where the optimizer is. There are two
engines. By Ray, on JAX and PyTorch, a `Worker` has the model and a `ShardServer` its variables, the
`Dispatcher` keeps the books, and `ray_actors` alone names Ray. By TensorFlow's coordinator the
chief's `TaskStep` is computed by workers as they are, on variables that a `RemoteModel` has put on
servers, and a `TaskDispatcher` makes the updates.
"""
