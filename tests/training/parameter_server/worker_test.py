import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import Trainer
from keras_deepseek.training.parameter_server.messages import Task, WorkerPlan
from keras_deepseek.training.parameter_server.model_shards import ModelShards
from keras_deepseek.training.parameter_server.pickled_trainer import pickle_trainer
from keras_deepseek.training.parameter_server.shard_server import ShardServer
from keras_deepseek.training.parameter_server.worker import Worker
from keras_deepseek.training.step.step_options import StepOptions

pytest.importorskip("ray", reason="tox -e ray has it.")

X = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 8)


class DirectServers:
    """Servers in this process, whose answers are there at once."""

    def __init__(self, servers):
        self.servers, self.pulls, self.pushes = servers, [], []

    def pull(self, index, version):
        self.pulls.append((index, version))
        return self.servers[index].pull(*version)

    def push(self, index, push):
        self.pushes.append(push)
        return self.servers[index].push(push)

    def wait(self, futures):
        return futures


def build(rate=0.0):
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(rate, seed=1),
            keras.layers.Dense(3),
        ]
    )


def make_trainer(rate=0.0, **arguments):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer = Trainer(build(rate), optimizer="sgd", loss=loss, metrics=["accuracy"], **arguments)
    trainer.model.optimizer.build(trainer.model.trainable_variables)
    return trainer


def start(trainer, *, looks_ahead=False, number=2, **options):
    variables = ModelShards(trainer.model, number)
    step = {"options": StepOptions(**options), "policy": None, "global_clipnorm": None}
    servers = [ShardServer() for _ in range(number)]
    for server, plan, values in zip(servers, variables.plans(), variables.read(0), strict=True):
        server.set_up(plan, values)
    links = DirectServers(servers)
    worker = Worker()
    plan = WorkerPlan(
        pickle_trainer(trainer, None, step),
        variables.describe(),
        variables.shards,
        (X, Y),
        looks_ahead,
    )
    values = [keras.ops.convert_to_numpy(variable.value) for variable in trainer.model.variables]
    worker.set_up(links, plan, values, seed=0)
    return worker, links, variables, (plan, values)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_worker_and_servers_make_the_step_of_one_process(micro_batches):
    served, alone = make_trainer(), make_trainer()
    alone.model.set_weights(served.model.get_weights())
    alone = Trainer(alone.model, micro_batches=micro_batches)
    worker, links, variables, _ = start(served, micro_batches=micro_batches)
    for number in range(3):
        result = worker.compute(Task(number, (X, Y), None, number, number))
        assert result.pushes == [server.life() for server in links.servers]
    history = alone.fit(X, Y, batch_size=8, epochs=3, shuffle=False, verbose=0).history
    variables.write([server.read() for server in links.servers])
    for served_variable, alone_variable in zip(
        served.model.variables, alone.model.variables, strict=True
    ):
        first, second = (
            keras.ops.convert_to_numpy(variable.value)
            for variable in (served_variable, alone_variable)
        )
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-6)
    total, count = result.metrics[:2]  # Of the mean of the loss.
    assert total / count == pytest.approx(history["loss"][-1], rel=1e-4)
    assert set(result.logs) == set()


def test_logs_beside_the_metrics_go_to_the_chief():
    trainer = make_trainer(gradient_clip=("global_norm", 0.1))
    worker, links, *_ = start(trainer, gradient_clip=("global_norm", 0.1))
    result = worker.compute(Task(0, (X, Y), 0.5, 0, 0))
    assert set(result.logs) == {"gradient_norm"}
    squares = sum(np.sum(gradient**2) for push in links.pushes for gradient in push.gradients)
    assert np.sqrt(squares) == pytest.approx(0.1, rel=1e-4)
    assert {push.rate for push in links.pushes} == {0.5}


def test_a_batch_has_the_same_random_numbers_on_each_worker():
    trainer = make_trainer(0.5)
    gradients_by_order = []
    for order in ([3, 4], [4, 3]):
        worker, links, *_ = start(trainer)
        for server in links.servers:
            server.push = lambda push: None  # The weights stay.
        for number in order:
            worker.compute(Task(number, (X, Y), None))
        gradients_by_order.append(
            {(p.number, i % 2): p.gradients for i, p in enumerate(links.pushes)}
        )
    for key, gradients in gradients_by_order[0].items():
        for first_gradient, second_gradient in zip(
            gradients, gradients_by_order[1][key], strict=True
        ):
            np.testing.assert_array_equal(first_gradient, second_gradient)
    assert any(
        not np.array_equal(first_gradient, other_gradient)
        for first_gradient, other_gradient in zip(
            gradients_by_order[0][3, 0], gradients_by_order[0][4, 0], strict=True
        )
    )


def test_weights_are_pulled_while_a_batch_is_computed_and_anew_where_they_are_too_old():
    trainer = make_trainer()
    worker, links, *_ = start(trainer, looks_ahead=True, number=1)
    versions = []
    for number, least in enumerate([0, 0, 2]):
        worker.compute(Task(number, (X, Y), None, least_updates=least))
        versions.append(links.pushes[-1].version[1])
    # The second was pulled before the first update was made; the third would have missed one.
    assert versions == [0, 0, 2]


def test_servers_that_know_nothing_are_said():
    trainer = make_trainer()
    worker, links, *_ = start(trainer)
    links.servers[1] = ShardServer()
    assert worker.compute(Task(0, (X, Y), None)).pushes is None


def test_a_worker_that_begins_anew_for_another_training_knows_nothing_of_the_first():
    trainer = make_trainer()
    worker, links, _, (plan, values) = start(trainer)
    worker.compute(Task(0, (X, Y), None))
    worker.reset()
    assert worker.compute(Task(1, (X, Y), None)) is None
    worker.set_up(links, plan, values, seed=0)
    links.pulls.clear()
    worker.compute(Task(1, (X, Y), None))
    assert links.pulls == [(0, (None, 0)), (1, (None, 0))]


def test_a_model_that_is_another_is_refused():
    trainer = make_trainer()
    worker, links, _, (plan, values) = start(trainer)
    worker.reset()
    wrong = WorkerPlan(plan.trainer, plan.variables[:-1], plan.shards, plan.batch, False)
    with pytest.raises(InvalidInputError, match="must build the same one each time"):
        worker.set_up(links, wrong, values, seed=0)


def test_weights_that_the_chief_has_frozen_are_frozen():
    trainer = make_trainer()
    trainer.model.layers[0].trainable = False
    trainer = Trainer(trainer.model, optimizer="sgd", loss=trainer.model.loss)
    trainer.model.optimizer.build(trainer.model.trainable_variables)
    worker, links, *_ = start(trainer)
    worker.compute(Task(0, (X, Y), None))
    assert sum(len(push.gradients) for push in links.pushes) == 4
