import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.layers import LinearAttention
from keras_deepseek.models.generation.compiled_steps import (
    CompiledSteps,
    StepKind,
    grow_cache,
    holds_only_slots,
)
from keras_deepseek.models.generation.sampler import GREEDY
from tests.oracles.small_language_model import make_small_model

NUMBERS = GREEDY.numbers
NO_NOISE = np.zeros(1, "float32")


@pytest.fixture(scope="module")
def model():
    return make_small_model()


class OneLayer:
    def __init__(self, layer):
        self.layer = layer
        layer.build((None, None, 8))

    def make_cache(self, batch_size, max_length):
        return [self.layer.make_cache(batch_size, max_length)]


@pytest.mark.torch_alone
def test_a_cache_with_states_cant_grow(model):
    assert holds_only_slots(model.make_cache)
    assert not holds_only_slots(OneLayer(LinearAttention(2, head_dim=4)).make_cache)


@pytest.mark.torch_alone
def test_a_grown_cache_holds_what_it_held(model):
    cache = model.make_cache(1, 4)
    tokens = np.asarray([[1, 2, 3]], "int32")
    _, _, cache = model.call_with_cache(tokens, cache, 0)
    grown = grow_cache(model.make_cache, cache, 9)
    for small, large in zip(cache, grown, strict=True):
        assert set(small) == set(large)
        for name, tensor in small.items():
            grown_tensor = ops.convert_to_numpy(large[name])
            np.testing.assert_array_equal(grown_tensor[:, :4], ops.convert_to_numpy(tensor))
            assert not grown_tensor[:, 4:].any()


def test_functions_are_made_once_and_anew_for_other_variables():
    model = make_small_model()
    steps, kind = CompiledSteps(model), StepKind(GREEDY.rules)
    decode = steps.decode(kind)
    assert steps.decode(kind) is decode
    assert steps.prefill(kind, 8) is not steps.prefill(kind, 16)
    model.backbone.transformer_layers[0].feed_forward.gate.enable_lora(2)
    assert steps.decode(kind) is not decode


def test_a_prompt_and_a_token_are_one_prompt(model):
    steps, kind = CompiledSteps(model), StepKind(GREEDY.rules, has_log_probabilities=True)
    tokens = np.asarray([[4, 7, 9]], "int32")
    _, state = steps.prefill(kind, 8)(None, tokens[:, :2], None, NO_NOISE, NUMBERS)
    two = np.asarray([2], "int32")
    decoded, _ = steps.decode(kind)(state, tokens[:, 2], 2, two, NO_NOISE, NUMBERS)
    expected, _ = steps.prefill(kind, 8)(None, tokens, None, NO_NOISE, NUMBERS)
    for name in expected:
        np.testing.assert_allclose(
            ops.convert_to_numpy(decoded[name]), ops.convert_to_numpy(expected[name]), rtol=1e-4
        )


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="Others are compiled.")
def test_a_layer_that_changed_is_run_as_it_is_now():
    def generate(model):
        return model.generate([[5, 9, 2]], max_new_tokens=20)[0]

    changed, fresh = make_small_model(), make_small_model()
    fresh.set_weights(changed.get_weights())
    before = generate(changed)  # Its later steps are recorded.
    for model in (changed, fresh):
        model.backbone.final_norm.epsilon = 30.0
        embeddings = model.backbone.token_embedding.embeddings
        embeddings.assign(0.1 * embeddings)
    assert generate(changed) == generate(fresh) != before


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="Others are compiled.")
def test_a_layer_of_a_user_is_run_at_each_token():
    calls = []

    class CountedNorm(keras.layers.RMSNormalization):
        def call(self, inputs):
            calls.append(tuple(inputs.shape))
            return super().call(inputs)

    model, expected = make_small_model(), make_small_model()
    expected.set_weights(model.get_weights())
    model.backbone.final_norm.__class__ = CountedNorm
    tokens = model.generate([[5, 9, 2]], max_new_tokens=20, stop_token_ids=None)
    assert tokens == expected.generate([[5, 9, 2]], max_new_tokens=20, stop_token_ids=None)
    assert len(calls) == 20


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="Others are compiled.")
def test_a_function_of_a_user_is_run_at_each_token():
    calls = []

    def count(x):
        calls.append(1)
        return x

    model = make_small_model()
    model.backbone.transformer_layers[0].feed_forward.down.activation = count
    model.generate([[5, 9, 2]], max_new_tokens=20, stop_token_ids=None)
    assert len(calls) == 20
