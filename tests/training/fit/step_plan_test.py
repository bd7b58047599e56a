import keras
import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.fit.step_plan import StepPlan
from keras_deepseek.training.step.step_guard import StepGuard
from keras_deepseek.training.step.step_options import StepOptions

X = np.ones((4, 2), "float32")


def build(model_class=keras.Sequential):
    model = model_class([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def plan(model, compute=None, policy=None, **options):
    return StepPlan(model, compute, StepOptions(**options), policy)


class OwnStep(keras.Sequential):
    def train_step(self, *arguments):
        return super().train_step(*arguments)


def test_the_step_is_replaced_only_while_in_use():
    model = build()

    def compute(x, y, sample_weight):
        return keras.ops.sum(model(x)) * 0.0 + 7.0

    with plan(model, compute, guard="skip").step.use():
        history = model.fit(X, X[:, :1], verbose=0).history
    assert history == {"loss": [7.0], "skipped_steps": [0.0]}
    assert model.fit(X, X[:, :1], verbose=0).history["loss"] != [7.0]
    assert "train_step" not in vars(model)


@pytest.mark.parametrize("policy", [None, keras.DTypePolicy("mixed_bfloat16")])
def test_a_model_with_a_step_of_its_own_keeps_it(policy):
    model = build(OwnStep)
    with plan(model, policy=policy).step.use():
        assert np.isfinite(model.fit(X, X[:, :1], verbose=0).history["loss"]).all()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"micro_batches": 2}, "`micro_batches`"),
        ({"gradient_clip": ("norm", 1.0)}, "`gradient_clip`"),
        ({"guard": "stop", "compute": keras.ops.mean}, "`guard` and the trainer's own"),
    ],
)
def test_options_that_an_own_step_would_ignore_are_refused(options, named):
    with pytest.raises(InvalidInputError, match=f"which would ignore {named}"):
        plan(build(OwnStep), **options)


def test_a_guard_adds_its_callback():
    for guard in ("skip", StepGuard("skip")):
        assert [type(callback).__name__ for callback in plan(build(), guard=guard).callbacks] == [
            "StepProfiler",
            "GuardCallback",
        ]


def test_without_a_guard_the_loss_is_checked():
    assert type(plan(build()).callbacks[-1]).__name__ == "FiniteCheck"


def test_a_model_that_was_compiled_again_is_refused():
    model = build()
    first = plan(model)
    model.compile("adam", "mse")
    with pytest.raises(InvalidInputError, match=r"was compiled again .*Make a new Trainer"):
        first.step.check_model()
    plan(model).step.check_model()


def test_layers_may_be_frozen_but_not_unfrozen():
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(2, name="a"), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse")
    step_plan = plan(model, lambda x, y, sample_weight: keras.ops.mean(model(x)))
    for is_trainable in (True, False, True):
        model.get_layer("a").trainable = is_trainable
        old_kernel = np.array(model.get_layer("a").kernel)
        with step_plan.step.use():
            model.fit(X, X[:, :1], verbose=0)
        assert (old_kernel != np.array(model.get_layer("a").kernel)).any() == is_trainable
    model.get_layer("a").trainable = False
    model.compile(keras.optimizers.SGD(0.1, use_ema=True), "mse")
    step_plan = plan(model)
    model.optimizer.build(model.trainable_variables)
    model.layers[-1].trainable = False
    with pytest.raises(InvalidInputError, match="Weights were frozen after the optimizer"):
        step_plan.step.check_model()
    model.get_layer("a").trainable = True
    with pytest.raises(InvalidInputError, match="a/kernel' became trainable after the optimizer"):
        step_plan.step.check_model()


def test_steps_are_counted_from_the_start_of_a_training():
    model = build()
    step_plan = plan(model, lambda x, y, sample_weight: keras.ops.mean(model(x)))
    for _ in range(2):
        with step_plan.step.use():
            model.fit(X, X[:, :1], batch_size=2, verbose=0)
        assert step_plan.step.num_steps == 2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"remat": ["block_*"]}, "names no layer of"),
        ({"policy": keras.DTypePolicy("float64")}, "has float32 weights; training by 'float64'"),
    ],
)
def test_names_without_a_layer_are_refused_at_once(arguments, match):
    with pytest.raises(InvalidInputError, match=match):
        plan(build(), **arguments)
