import types

import keras
import numpy as np
import pytest
from keras import layers

from keras_deepseek import graph
from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.graph.plans import Plans
from keras_deepseek.training import Trainer
from keras_deepseek.training.fit.compile_model import check_optimizable

generator = np.random.default_rng(0)
TOKENS, LABELS = generator.integers(0, 20, (20, 6)), generator.integers(0, 3, 20)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class OwnStep(keras.Model):
    def train_step(self, *arguments):
        return super().train_step(*arguments)


def build(kind=keras.Model):
    keras.utils.set_random_seed(0)
    tokens = keras.Input((None,), dtype="int32")
    x = layers.Embedding(20, 8)(tokens)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    x += layers.Dense(8)(x)
    return kind(tokens, layers.Dense(3)(x[:, 0]))


def train(model, epochs=2, **options):
    trainer = Trainer(model, optimizer=keras.optimizers.SGD(0.1), loss=LOSS, seed=0, **options)
    resume = "checkpoint_dir" in options
    history = trainer.fit(TOKENS, LABELS, 8, epochs, 0, resume=resume).history
    return history["loss"], model.get_weights()


@pytest.fixture
def programs(monkeypatch):
    """Counts the multiply-adds that the programs of the step leave out."""
    saved = []
    make_plan = Plans._make

    def make(self, *arguments):
        plan = make_plan(self, *arguments)
        saved.append(plan.size_before[1] - plan.size[1])
        return plan

    monkeypatch.setattr(Plans, "_make", make)
    return saved


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (keras.Model, {"micro_batches": 2, "gradient_clip": ("global_norm", 1.0)}),
        (OwnStep, {}),
        (keras.Model, {"remat": ["multi_head_attention*"]}),
        (keras.Model, {"precision": "bfloat16"}),
    ],
)
def test_a_training_by_programs_has_the_same_numbers(kind, options, programs):
    losses, weights = train(build(kind), **options)
    assert programs == []
    model = build(kind)
    optimized_losses, optimized_weights = train(model, optimize_graph=True, **options)
    assert min(programs) > 0
    assert "call" not in vars(model)
    tolerance = 2e-2 if "precision" in options else 1e-5
    np.testing.assert_allclose(optimized_losses, losses, atol=tolerance)
    for expected, received_weight in zip(weights, optimized_weights, strict=True):
        np.testing.assert_allclose(received_weight, expected, atol=tolerance)


@pytest.mark.torch_alone
def test_a_resumed_training_has_the_same_bits(tmp_path):
    options = {"optimize_graph": True}
    _, weights = train(build(), checkpoint_dir=tmp_path / "whole", **options)
    train(build(), epochs=1, checkpoint_dir=tmp_path / "resumed", **options)
    _, resumed = train(build(), checkpoint_dir=tmp_path / "resumed", **options)
    for expected, received in zip(weights, resumed, strict=True):
        np.testing.assert_array_equal(received, expected)


@pytest.mark.torch_alone
def test_an_optimized_model_is_trained_as_it_is():
    losses, weights = train(build())
    optimized = graph.optimize(build(), TOKENS, mode="train", measure=False)
    optimized_losses, optimized_weights = train(optimized)
    np.testing.assert_allclose(optimized_losses, losses, atol=1e-5)
    for expected, received_weight in zip(weights, optimized_weights, strict=True):
        np.testing.assert_allclose(received_weight, expected, atol=1e-5)
    with pytest.raises(InvalidInputError, match="is optimized already"):
        train(optimized, optimize_graph=True)


@pytest.mark.torch_alone
def test_what_divides_the_model_is_refused():
    whole = types.SimpleNamespace(layers=None, distribution=None)
    check_optimizable(build(), whole, uses_servers=False)
    with pytest.raises(NotSupportedError, match="a parameter server divides the model"):
        check_optimizable(build(), whole, uses_servers=True)
    with pytest.raises(NotSupportedError, match="device_map"):
        train(build(), optimize_graph=True, device_map={"dense*": "cpu:0"})
