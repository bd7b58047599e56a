import keras
import numpy as np
import pytest

from keras_deepseek.training.parameter_server.coordinator_step import CoordinatorStep
from keras_deepseek.training.parameter_server.gradient_step import GradientsAsLogs
from keras_deepseek.training.parameter_server.model_shards import ModelShards
from keras_deepseek.training.parameter_server.remote_model import RemoteModel
from keras_deepseek.training.step.loss.batch_loss import BatchLoss
from keras_deepseek.training.step.step_options import StepOptions
from keras_deepseek.training.step.training_step import TrainingStep
from tests.oracles.eager_tasks import EagerTasks

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="The others have workers with models."
)
X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
Y = np.zeros((8, 2), "float32")


def make(optimizer=None, further_variables=()):
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(2, activity_regularizer="l2"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
        ]
    )
    model.compile(optimizer or keras.optimizers.SGD(0.5), "mse", metrics=["mae"])
    model.optimizer.build(model.trainable_variables)
    model.evaluate(X, Y, verbose=0)  # Makes its metrics, and leaves sums in them.

    gradient_step = TrainingStep(
        model,
        BatchLoss(model, is_in_parts=False),
        GradientsAsLogs(model, ("global_norm", 1.0), None),
        StepOptions(),
    )
    step = CoordinatorStep(model, gradient_step, further_variables)
    served = ModelShards(model, 2)
    step.remote = RemoteModel(
        EagerTasks(), served.plans(), served.shards, served.read(0), step.read_frozen(), 1
    )
    for server, values in enumerate(served.read(0)):
        step.remote.write(server, values)
    return model, step


def values_of(model):
    return [
        keras.ops.convert_to_numpy(variable).copy()
        for variable in [*model.variables, *model.metrics_variables]
    ]


def test_a_batch_leaves_its_traces_on_the_servers_alone():
    model, step = make()
    old_values = values_of(model)
    logs, metrics = step((X, Y), step.seeds.of(3), 0)
    for old_value, new_value in zip(old_values, values_of(model), strict=True):
        np.testing.assert_array_equal(old_value, new_value)
    assert set(logs) == {"gradient_norm"}
    assert float(metrics[1]) == 8.0  # What the loss counts by, of this batch alone.
    step.remote.update(0, None)
    _, states, _ = step.remote.pull()
    assert not np.allclose(keras.ops.convert_to_numpy(states[0]), 0.0)


def test_random_numbers_follow_the_seeds():
    _, step = make()
    norms = [
        float(step((X, Y), step.seeds.of(number), 0)[0]["gradient_norm"]) for number in (1, 2, 1)
    ]
    assert norms[0] == norms[2] != norms[1]


def test_the_optimizer_scales_no_loss_meanwhile():
    norms = []
    for scale in (None, 64.0):
        keras.utils.set_random_seed(0)
        model, step = make(keras.optimizers.SGD(0.5, loss_scale_factor=scale))
        norms.append(float(step((X, Y), step.seeds.of(0), 0)[0]["gradient_norm"]))
        assert model.optimizer.loss_scale_factor == scale
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_what_no_update_changes_is_read_from_the_servers_too():
    teacher = keras.Variable(np.ones(3, "float32"), trainable=False)
    _, step = make(further_variables=[teacher])
    assert [variable.shape for variable in step.read_frozen()] == [(3,)]
