import keras
import numpy as np
import pytest
from keras import ops

from keras_deepseek.backend import current

X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")


def build():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def test_a_step_takes_the_place_of_keras_s_own():
    model = build()

    def step(data):
        (weight, *_), (total,) = model.trainable_variables, model.metrics_variables[:1]
        weight.assign(weight * 0.0 + 7.0)
        total.assign_add(1.0)
        model.optimizer.iterations.assign_add(2)
        return {"rows": ops.cast(ops.shape(data[0])[0], "float32")}

    model.train_step = current().make_train_step(model, step)
    history = model.fit(X, X[:, :1], batch_size=3, epochs=2, verbose=0).history
    assert history == {"rows": [3.0, 3.0]}
    np.testing.assert_array_equal(model.get_weights()[0], np.full((4, 3), 7.0))
    assert int(model.optimizer.iterations.value) == 8
    assert float(model.metrics_variables[0].value) == 2.0


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="On torch no step is compiled.")
def test_what_is_run_before_a_step_may_assign_the_optimizer_s_variables():
    model = build()

    def double():
        model.optimizer.learning_rate = 2.0 * ops.convert_to_tensor(model.optimizer.learning_rate)

    model.train_step = current().run_before_step(model, model.train_step, double)
    model.fit(X, X[:, :1], batch_size=3, epochs=2, verbose=0)
    assert float(ops.convert_to_numpy(model.optimizer.learning_rate)) == pytest.approx(1.6)
    assert int(model.optimizer.iterations) == 4


@pytest.mark.parametrize("fails", ["step", "data"])
def test_after_an_error_a_model_has_its_weights(fails):
    model = build()
    model.fit(X, X[:, :1], verbose=0)
    before = model.get_weights()
    own_step = model.train_step

    def make_train_function(force=False):
        model.train_function = current().make_train_function(model, list, force=force)

    def step(*arguments):
        if fails == "step":
            raise ArithmeticError("failed")
        return own_step(*arguments)

    class Callback(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            assert self.model  # On JAX this takes the state out of Keras's loop.

    def batches():
        yield X, X[:, :1]
        raise ArithmeticError("failed")

    model.make_train_function, model.train_step = make_train_function, step
    model.train_function = None
    with pytest.raises(Exception, match="failed"):
        model.fit(batches(), verbose=0, shuffle=False, callbacks=[Callback()])
    after = model.get_weights()
    if fails == "step":
        for one, other in zip(after, before, strict=True):
            np.testing.assert_array_equal(one, other)
    assert np.isfinite(model.predict(X, verbose=0)).all()


def test_the_end_of_the_data_is_told_from_errors():
    assert current().ends_data(StopIteration())
    assert not current().ends_data(ValueError())


def test_variables_that_share_their_memory_get_their_own():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(use_ema=True), "mse")
    x = np.ones((8, 4), "float32")
    model.fit(x, x[:, :1], verbose=0)  # Moving averages have become the weights.
    before = model.get_weights()
    current().separate_variables(model)
    values = [variable.value for variable in (*model.variables, *model.optimizer.variables)]
    assert len({id(value) for value in values}) == len(values)
    for found, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    model.fit(x, x[:, :1], verbose=0)
