import keras
import numpy as np
import pytest

from keras_deepseek.training.parameter_server.messages import Push, pack_rows
from keras_deepseek.training.parameter_server.model_shards import ModelShards
from keras_deepseek.training.parameter_server.shard_server import ShardServer

OPTIMIZERS = {
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
    "adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "nadam": lambda: keras.optimizers.Nadam(0.01),
    "ftrl": lambda: keras.optimizers.Ftrl(0.01),
    "lamb": lambda: keras.optimizers.Lamb(0.01),
    "muon": lambda: keras.optimizers.Muon(0.01, exclude_layers=["head"]),
    "clip": lambda: keras.optimizers.Adam(0.01, clipnorm=0.1),
    "average": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=2),
    "accumulate": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=2),
    "schedule": lambda: keras.optimizers.Adam(
        keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
    ),
}


def build_model(optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            keras.layers.Embedding(300, 4, name="table"),
            keras.layers.Dense(6, name="body", kernel_constraint="non_neg"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dense(2, name="head"),
        ]
    )
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, loss="mse")
    return model


def start(model, num_servers):
    variables = ModelShards(model, num_servers)
    servers = [ShardServer() for _ in range(num_servers)]
    for server, plan, values in zip(servers, variables.plans(), variables.read(0), strict=True):
        server.set_up(plan, values)
    return variables, servers


def make_gradients(model, step):
    rng = np.random.default_rng(step)
    gradients = [
        rng.normal(size=variable.shape).astype("float32") for variable in model.trainable_variables
    ]
    gradients[0][10:] = 0.0
    return gradients


def push_all(variables, servers, number, gradients, rate=None, changes=()):
    pushed = []
    for shard, server in zip(variables.shards, servers, strict=True):
        version = server.pull(None, 0).version
        pushed.append(
            server.push(
                Push(
                    number,
                    version,
                    [
                        None if gradients[index] is None else pack_rows(gradients[index])
                        for index in shard.variables
                    ],
                    [changes[index] if changes else np.float32(0.0) for index in shard.states],
                    rate,
                    settled_below=0,
                )
            )
        )
    return pushed


def values_of(model):
    variables = [*model.trainable_variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(variable.value) for variable in variables]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.torch_alone
def test_servers_together_update_as_the_optimizer_does(name):
    alone, served = build_model(OPTIMIZERS[name]()), build_model(OPTIMIZERS[name]())
    variables, servers = start(served, 2)
    for step in range(4):
        gradients = make_gradients(alone, step)
        alone.optimizer.apply(
            [keras.ops.convert_to_tensor(gradient) for gradient in gradients],
            alone.trainable_variables,
        )
        answers = push_all(variables, servers, step, gradients)
        assert answers == [server.life() for server in servers]
    variables.write([server.read() for server in servers])
    for received, reference in zip(values_of(served), values_of(alone), strict=True):
        np.testing.assert_allclose(received, reference, rtol=1e-5, atol=1e-5)


def test_an_update_that_comes_again_is_left_out():
    model = build_model(keras.optimizers.SGD(0.1))
    variables, servers = start(model, 2)
    gradients = make_gradients(model, 0)
    push_all(variables, servers, 0, gradients)
    old_values = [server.read() for server in servers]
    assert push_all(variables, servers, 0, gradients) == [server.life() for server in servers]
    after = [server.read() for server in servers]
    for old, new in zip(old_values, after, strict=True):
        assert old.num_updates == new.num_updates == 1
        np.testing.assert_array_equal(old.weights[0], new.weights[0])


def test_what_is_settled_is_forgotten_and_does_not_come_again():
    model = build_model(keras.optimizers.SGD(0.1))
    variables, (server,) = start(model, 1)
    gradients = make_gradients(model, 0)
    push_all(variables, [server], 0, gradients)
    version = server.pull(None, 0).version
    states = [np.float32(0.0) for _ in variables.shards[0].states]
    server.push(Push(5, version, gradients, states, None, settled_below=4))
    assert server.read().applied == {5}
    server.push(Push(3, version, gradients, states, None, settled_below=4))
    assert (server.read().applied, server.read().num_updates) == ({5}, 2)


def test_the_learning_rate_is_that_of_the_batch():
    model = build_model(keras.optimizers.SGD(0.1))
    variables, (server,) = start(model, 1)
    old_weight = server.read().weights[0]
    gradients = make_gradients(model, 0)
    push_all(variables, [server], 0, gradients, rate=0.5)
    np.testing.assert_allclose(server.read().weights[0], old_weight - 0.5 * gradients[0], rtol=1e-5)


def test_variables_without_a_gradient_stay_and_the_update_counts():
    model = build_model(keras.optimizers.Adam(0.1))
    variables, servers = start(model, 2)
    old_values = [server.read() for server in servers]
    push_all(variables, servers, 0, [None] * len(model.trainable_variables))
    for server, was in zip(servers, old_values, strict=True):
        now = server.read()
        assert now.num_updates == 1
        np.testing.assert_array_equal(now.weights[0], was.weights[0])
        assert now.optimizer[0] == was.optimizer[0] + 1  # The iterations.


def test_what_batches_leave_in_layers_is_added():
    model = build_model(keras.optimizers.SGD(0.1))
    variables, (server,) = start(model, 1)
    changes = [np.full(state.shape, 0.5, state.dtype) for state in server.read().states]
    push_all(variables, [server], 0, make_gradients(model, 0), changes=changes)
    variables.write([server.read()])
    mean = model.get_layer("norm").moving_mean
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(mean), np.full(6, 0.5))


def test_weights_that_a_worker_has_are_not_sent():
    model = build_model(keras.optimizers.SGD(0.1))
    variables, (server,) = start(model, 1)
    first = server.pull(None, 0)
    assert server.pull(*first.version).weights is None
    push_all(variables, [server], 0, make_gradients(model, 0))
    assert server.pull(*first.version).weights is not None


def test_a_server_that_begins_anew_knows_nothing_until_it_gets_its_values():
    model = build_model(keras.optimizers.Adam(0.1))
    variables, (server,) = start(model, 1)
    gradients = make_gradients(model, 0)
    push_all(variables, [server], 0, gradients)
    snapshot = server.read()
    anew = ShardServer()
    assert anew.life() is None
    assert anew.pull(None, 0) is None
    assert anew.read() is None
    assert anew.push(Push(1, ("", 0), [], [], None, 0)) is None
    assert anew.set_up(variables.plans()[0], snapshot) == anew.life() != server.life()
    push_all(variables, [anew], 0, gradients)
    assert anew.read().num_updates == 1
    for updated in (anew, server):
        push_all(variables, [updated], 1, gradients)
    assert anew.read().num_updates == 2
    for received, reference in zip(anew.read().weights, server.read().weights, strict=True):
        np.testing.assert_array_equal(received, reference)
    # The count is the same, and the weights may not be.
    assert anew.pull(*server.pull(None, 0).version).weights is not None


def test_the_most_that_weights_have_missed_is_known():
    model = build_model(keras.optimizers.SGD(0.1))
    variables, (server,) = start(model, 1)
    version = server.pull(None, 0).version
    gradients = make_gradients(model, 0)
    for number in range(3):
        push_all(variables, [server], number, gradients)
    assert server.most_missed() == 0
    states = [np.float32(0.0) for _ in variables.shards[0].states]
    server.push(Push(3, version, gradients, states, None, 0))
    assert server.most_missed() == 3
