import keras
import numpy as np
import pytest

from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.callbacks import ExpertBalancing, MetricsLog, TensorBoardEvents
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.layers import DeepSeekMoE, ExpertRouter


class LogRecorder(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.steps = []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(dict(logs))


def imbalanced_model(num_layers=1, **router_kwargs):
    """Its routers start with a strong liking for the first expert, and learn slowly."""
    inputs = x = keras.Input((6,))
    for _ in range(num_layers):
        router = ExpertRouter(4, 1, **router_kwargs)
        x = DeepSeekMoE(router, 3)(x)
        kernel = np.random.default_rng(1).normal(size=(6, 4)) * 0.2
        kernel[0, 0] += 1.0
        router.kernel.assign(kernel)
    model = keras.Model(inputs, x)
    model.compile(keras.optimizers.SGD(1e-4), "mse")
    return model


def positive_data(size=256):
    x = np.random.default_rng(0).normal(size=(size, 6)).astype("float32")
    x[:, 0] = 1.0 + 0.1 * np.abs(x[:, 0])  # So that nearly every token likes the first expert.
    return x


def fit(model, *callbacks, **kwargs):
    x = positive_data()
    return model.fit(x, x, batch_size=64, verbose=0, callbacks=list(callbacks), **kwargs).history


def router_of(model, index=-1):
    return model.layers[index].router


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def test_an_imbalanced_router_becomes_balanced():
    history = fit(imbalanced_model(num_layers=2), ExpertBalancing(0.003), epochs=50)
    assert history["largest_expert_load"][0] > 2.5
    assert np.mean(history["largest_expert_load"][-5:]) < 1.6
    assert history["idle_expert_share"][-1] == 0.0


def test_without_updates_it_stays_imbalanced_and_is_logged():
    model = imbalanced_model()
    history = fit(model, ExpertBalancing(0.0), epochs=20)
    assert history["largest_expert_load"][-1] > 2.5
    assert not to_numpy(router_of(model).expert_bias).any()


def test_the_bias_moves_by_the_rate_against_the_load():
    model = imbalanced_model()
    bias = router_of(model).expert_bias
    bias.assign([0.5, 0.0, 0.0, -0.5])
    old_bias = to_numpy(bias)
    x = positive_data(64)
    model.fit(x, x, batch_size=64, verbose=0, callbacks=[ExpertBalancing(0.25)])
    load = to_numpy(router_of(model).expert_load)
    assert load.sum() == 64
    expected = old_bias + 0.25 * np.sign(load.mean() - load)
    np.testing.assert_allclose(to_numpy(bias), expected)


def test_each_step_is_logged_and_the_epoch_has_their_mean():
    recorder = LogRecorder()
    history = fit(imbalanced_model(), ExpertBalancing(0.1), recorder, epochs=2)
    for name in ("largest_expert_load", "idle_expert_share"):
        steps = np.array([logs[name] for logs in recorder.steps]).reshape(2, -1)
        assert len(set(steps.ravel())) > 1
        np.testing.assert_allclose(history[name], steps.mean(axis=1), rtol=1e-6)


def test_a_router_without_a_bias_is_logged():
    history = fit(imbalanced_model(use_expert_bias=False), ExpertBalancing())
    assert history["largest_expert_load"][0] > 2.5


def test_a_step_that_shows_no_token_moves_nothing():
    embedding = keras.layers.Embedding(5, 6, mask_zero=True)
    layer = DeepSeekMoE(ExpertRouter(4, 1), 3)
    model = keras.Sequential([keras.Input((None,), dtype="int32"), embedding, layer])
    model.compile("sgd", "mse")
    zeros = np.zeros((2, 3))
    history = model.fit(
        zeros, np.zeros((2, 3, 6)), verbose=0, callbacks=[ExpertBalancing(0.1)]
    ).history
    assert "largest_expert_load" not in history
    assert not to_numpy(layer.router.expert_bias).any()


@pytest.mark.parametrize("update_rate", [-0.1, float("nan"), float("inf"), "fast", True])
def test_a_rate_that_is_none_is_refused(update_rate):
    with pytest.raises(InvalidInputError, match="`update_rate` must be a finite number"):
        ExpertBalancing(update_rate)


def test_a_model_without_a_router_is_refused():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(6)])
    model.compile("sgd", "mse")
    with pytest.raises(InvalidInputError, match="has no `ExpertRouter`"):
        fit(model, ExpertBalancing())


def test_each_layer_and_expert_is_logged_into_the_record_of_a_training(tmp_path):
    model = imbalanced_model(num_layers=2)
    log, events = MetricsLog(tmp_path / "log.jsonl"), TensorBoardEvents(tmp_path / "events")
    history = fit(model, ExpertBalancing(0, log_each="expert"), log, events, epochs=1)
    routers = [layer for layer in flatten_layers(model) if isinstance(layer, ExpertRouter)]
    largest = []
    for router in routers:
        path = router.expert_load.path.rpartition("/")[0]
        load = to_numpy(router.expert_load)
        assert history[f"expert_load/{path}"][-1] >= 1
        names = [f"expert_share/{path}/{index}" for index in range(len(load))]
        assert sum(history[name][-1] for name in names) == pytest.approx(1, abs=1e-5)
        largest.append(history[f"expert_load/{path}"][-1])
        lines = (tmp_path / "log.jsonl").read_text()
        assert names[-1] in lines
        assert any(names[0].encode() in file.read_bytes() for file in events_of(tmp_path))
    assert len(largest) == 2
    assert history["largest_expert_load"][-1] >= max(largest) - 1e-5


def events_of(folder):
    return [file for file in (folder / "events").rglob("*") if file.is_file()]


def test_each_layer_alone_is_logged():
    history = fit(imbalanced_model(), ExpertBalancing(log_each="layer"))
    assert sum(name.startswith("expert_load/") for name in history) == 1
    assert not any(name.startswith("expert_share/") for name in history)
    with pytest.raises(InvalidInputError, match="did you mean 'layer'"):
        ExpertBalancing(log_each="layers")
