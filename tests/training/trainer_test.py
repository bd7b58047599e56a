import keras
import numpy as np
import pytest

from keras_deepseek.artifacts.run_record import RunRecord
from keras_deepseek.callbacks import LRScheduler
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training import ParameterServer, Trainer

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
Y = (X.sum(axis=1) > 0).astype("int32")


def build(compiled=False):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )
    if compiled:
        model.compile(
            keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"]
        )
    return model


@pytest.mark.parametrize("half", [{}, {"fp16_enabled": True}, {"precision": "float16"}])
def test_it_learns_and_predicts_in_the_models_own_precision(half):
    model = build()
    trainer = Trainer(
        model=model,
        optimizer=keras.optimizers.Adam(0.05),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        device_map={"gpu": 0, "tpu": 1},
        **half,
    )
    history = trainer.fit(X, Y, epochs=20, batch_size=16, verbose=0)
    assert history.history["accuracy"][-1] > 0.9
    assert trainer.model is model
    assert type(model) is keras.Sequential
    assert trainer.predict(X[:3], verbose=0).dtype == np.float32
    _, accuracy = trainer.evaluate(X, Y, verbose=0)
    assert accuracy > 0.9


def test_half_precision_changes_the_training_and_nothing_after_it():
    """The step computes by bfloat16, so its losses differ; `predict` is float32's to the bit."""
    trained = {}
    for fp16_enabled in (False, True):
        keras.utils.set_random_seed(1)
        model = build()
        trainer = Trainer(
            model,
            optimizer="sgd",
            loss="sparse_categorical_crossentropy",
            fp16_enabled=fp16_enabled,
        )
        losses = trainer.fit(X, Y, epochs=2, shuffle=False, verbose=0).history["loss"]
        plain = build()
        plain.set_weights(model.get_weights())
        np.testing.assert_array_equal(trainer.predict(X, verbose=0), plain.predict(X, verbose=0))
        trained[fp16_enabled] = losses
    assert trained[True] != trained[False]
    np.testing.assert_allclose(trained[True], trained[False], rtol=0.02)


@pytest.mark.parametrize("shuffle", [False, True])
def test_without_precision_it_has_the_numbers_of_models_fit(shuffle):
    if shuffle and keras.backend.backend() == "torch":
        pytest.skip("The order is another than Keras's.")
    results = []
    for use_trainer in (False, True):
        keras.utils.set_random_seed(2)
        model = build(compiled=True)
        fit = Trainer(model).fit if use_trainer else model.fit
        results.append(fit(X, Y, epochs=2, verbose=0, shuffle=shuffle).history["loss"])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5)


@pytest.mark.torch_alone
def test_notices_are_printed_once(capsys, tmp_path):
    def make_again():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        options = {"fp16_enabled": True, "checkpoint_dir": tmp_path}
        return Trainer(model, optimizer="sgd", loss="mse", **options)

    x = np.ones((8, 2), "float32")
    trainer = make_again()
    assert not capsys.readouterr().out
    trainer.fit(x, x[:, :1], batch_size=4, verbose=2)
    assert "the training step computes in '" in capsys.readouterr().out
    trainer.fit(x, x[:, :1], batch_size=4, epochs=2, verbose=2, resume=True)
    output = capsys.readouterr().out
    assert "continues after step 2." in output
    assert "computes in" not in output
    make_again().fit(x, x[:, :1], batch_size=4, epochs=2, verbose=0, resume=True)
    assert not capsys.readouterr().out


@pytest.mark.torch_alone
def test_compiled_settings_are_kept():
    model = build(compiled=True)
    optimizer = model.optimizer
    trainer = Trainer(model=model, fp16_enabled=True)
    assert model.optimizer is optimizer
    assert "accuracy" in trainer.fit(X, Y, verbose=0).history


def test_an_optimizer_of_its_own_replaces_the_compiled_one():
    model = build(compiled=True)
    optimizer = keras.optimizers.SGD(0.1)
    trainer = Trainer(model=model, optimizer=optimizer)
    assert model.optimizer is optimizer
    assert "accuracy" in trainer.fit(X, Y, verbose=0).history


def test_without_an_optimizer_it_says_what_to_pass():
    with pytest.raises(
        InvalidInputError, match=r"not compiled with an optimizer.*optimizer=\.\.\."
    ):
        Trainer(build(), loss="mse")


def test_without_a_loss_it_says_what_to_pass():
    trainer = Trainer(build(), optimizer="adam")
    with pytest.raises(InvalidInputError, match=r"has no loss: pass Trainer\(\.\.\., loss="):
        trainer.fit(X, Y, verbose=0)


def test_plain_functions_and_lambdas_stay_the_models_loss_and_metrics():
    def largest(y_true, y_pred):
        return keras.ops.max(y_pred)

    model = build()
    model.compile("sgd", loss=lambda y_true, y_pred: keras.ops.mean(y_pred), metrics=[largest])
    trainer = Trainer(model, optimizer=keras.optimizers.SGD(0.0), fp16_enabled=True)
    logs = trainer.fit(X, Y, verbose=0).history
    np.testing.assert_allclose(logs["loss"], [0.5], rtol=1e-2)
    assert 0.5 < logs["largest"][0] <= 1.0


def test_a_metric_object_is_the_users_own():
    metric = keras.metrics.SparseCategoricalAccuracy()
    model = build()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=[metric])
    Trainer(model, optimizer=keras.optimizers.SGD(0.0)).fit(X, Y, verbose=0)
    assert float(metric.result()) > 0.0


class OwnLoss(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return keras.ops.mean(y_pred)


class OwnCompile(keras.Model):
    def compile(self, optimizer, my_loss):
        super().compile(optimizer=optimizer, loss=my_loss)


def functional(model_class):
    inputs = keras.Input((4,))
    return model_class(inputs, keras.layers.Dense(2, activation="softmax")(inputs))


def test_a_model_that_computes_its_own_loss_trains():
    history = Trainer(functional(OwnLoss), optimizer="sgd", fp16_enabled=True).fit(X, Y, verbose=0)
    np.testing.assert_allclose(history.history["loss"], [0.5], rtol=1e-2)


def test_a_model_with_an_overridden_compile_is_not_compiled_again():
    model = functional(OwnCompile)
    model.compile("sgd", my_loss="sparse_categorical_crossentropy")
    assert Trainer(model, fp16_enabled=True).fit(X, Y, verbose=0).history["loss"]


@pytest.mark.torch_alone
def test_positional_arguments_and_none_are_taken_as_by_keras():
    trainer = Trainer(build(compiled=True), callbacks=None)
    assert len(trainer.fit(X, Y, 16, 2, 0, None).history["loss"]) == 2


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"optimizer": "adamm"}, "Unknown optimizer 'adamm'"),
        ({"loss": "msee"}, "Unknown loss 'msee'"),
        ({"metrics": ["acc", "accuracyy"]}, "Unknown metric 'accuracyy'"),
        ({"fp16_enabled": "no"}, "`fp16_enabled` must be True or False"),
        ({"precision": 16}, "Unknown precision 16"),
        ({"device_map": "gpu"}, "`device_map` must be a dict"),
        ({"device_map": ["gpu"]}, "`device_map` must be a dict"),
        ({"world_size": "8"}, "`world_size` must be a positive integer"),
        ({"world_size": 1.5}, "`world_size` must be a positive integer"),
        ({"keep_last": 5}, "`keep_last` needs a folder for checkpoints"),
        ({"callbacks": 3}, r"Expected a keras\.callbacks\.Callback; received int"),
        ({"callbacks": keras.callbacks.History}, r"Pass an object: History\(\)"),
        ({"gradient_compression": "bf16"}, "'low_rank' or a LowRank; received 'bf16'"),
        ({"rank": "0"}, "`rank` must be an integer of at least 0"),
        ({"run_record": 3}, "`run_record` must be a path, received 3"),
        ({"loss": keras.losses.MeanSquaredError(reduction=None)}, "has reduction=None"),
    ],
)
def test_a_wrong_argument_is_refused_at_once(arguments, match):
    with pytest.raises(InvalidInputError, match=match):
        Trainer(build(compiled=True), **arguments)


@pytest.mark.torch_alone
def test_callbacks_of_the_trainer_and_of_the_call_both_run():
    calls = []

    class Named(keras.callbacks.Callback):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def on_train_begin(self, logs=None):
            calls.append(self.name)

    trainer = Trainer(build(compiled=True), callbacks=[Named("first")])
    trainer.add_callback(Named("second"))
    trainer.fit(X, Y, verbose=0, callbacks=[Named("third")])
    trainer.fit(X, Y, verbose=0)
    assert calls == ["first", "second", "third", "first", "second"]


@pytest.mark.torch_alone
def test_a_scheduler_is_added_as_a_callback():
    trainer = Trainer(build(compiled=True), fp16_enabled=True)
    trainer.add_callback(
        LRScheduler(
            func=lambda step, total, first, last: first + (last - first) * step / total,
            total_steps=4,
            initial_lr=0.0,
            final_lr=4.0,
        )
    )
    history = trainer.fit(X, Y, batch_size=16, verbose=0)
    np.testing.assert_allclose(history.history["learning_rate"], [3.0])


def test_a_run_record_is_written(tmp_path):
    Trainer(build(compiled=True), run_record=tmp_path / "run.sqlite").fit(
        X, Y, batch_size=16, epochs=2, verbose=0
    )
    with RunRecord(tmp_path / "run.sqlite") as record:
        assert len(record.scalars("loss")) == 8


def test_invalid_callbacks_are_refused():
    with pytest.raises(InvalidInputError, match=r"Expected a keras\.callbacks\.Callback"):
        Trainer(build(compiled=True)).add_callback(lambda: None)


def test_invalid_models_are_refused():
    with pytest.raises(InvalidInputError, match=r"must be a keras\.Model.*received str"):
        Trainer("model.keras")
    with pytest.raises(InvalidInputError, match=r"a function that builds one; received NoneType"):
        Trainer(lambda: None)


def test_a_function_builds_the_model_after_the_seed_was_set():
    weights = [Trainer(build, optimizer="sgd", seed=3).model.get_weights()[0] for _ in range(2)]
    np.testing.assert_array_equal(*weights)
    other = Trainer(build, optimizer="sgd", seed=4).model.get_weights()[0]
    assert not np.array_equal(other, weights[0])


def test_one_process_of_an_all_reduce_trains():
    trainer = Trainer(build(compiled=True), distributed_strategy="allreduce", world_size=1, rank=0)
    assert trainer.fit(X, Y, verbose=0).history["loss"]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="They need Ray.")
def test_several_chiefs_are_refused_at_once():
    with pytest.raises(InvalidInputError, match="Only one process, the chief, runs the script"):
        Trainer(
            build(compiled=True),
            distributed_strategy=ParameterServer(num_workers=2),
            world_size=8,
            rank=0,
            coordinator="localhost:29500",
        )


def generator_data():
    while True:
        yield X[:16], Y[:16]


def test_generators_and_py_datasets_are_data_too():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            rows = slice(16 * index, 16 * (index + 1))
            return X[rows], Y[rows]

    trainer = Trainer(build(compiled=True), fp16_enabled=True)
    assert trainer.fit(Batches(), verbose=0).history["loss"]
    assert trainer.fit(generator_data(), steps_per_epoch=2, shuffle=False, verbose=0).history[
        "loss"
    ]


def test_several_outputs_train_with_a_loss_each():
    inputs = keras.Input((4,))
    model = keras.Model(
        inputs,
        {
            "label": keras.layers.Dense(2, name="label")(inputs),
            "sum": keras.layers.Dense(1)(inputs),
        },
    )
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer = Trainer(
        model, optimizer="adam", loss={"label": sparse, "sum": "mse"}, fp16_enabled=True
    )
    history = trainer.fit(X, {"label": Y, "sum": X.sum(axis=1, keepdims=True)}, verbose=0)
    assert np.isfinite(history.history["loss"][-1])


def test_an_unbuilt_model_trains():
    model = keras.Sequential([keras.layers.Dense(8), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer = Trainer(model, optimizer="adam", loss=loss, fp16_enabled=True)
    assert np.isfinite(trainer.fit(X, Y, verbose=0).history["loss"][-1])
    assert trainer.predict(X, verbose=0).dtype == np.float32


def test_an_error_of_data_or_step_names_the_batch():
    def batches(last):
        yield X[:8], Y[:8]
        yield X[8:16], Y[8:16]
        if last is None:
            raise ArithmeticError("no third batch")
        yield last

    for last in (None, (X[:8, :3], Y[:8])):
        trainer = Trainer(build(), optimizer="sgd", loss="sparse_categorical_crossentropy")
        with pytest.raises(Exception, match=r".+") as caught:
            trainer.fit(batches(last), shuffle=False, verbose=0)
        assert says_place(caught.value, 2)


def test_an_error_as_the_model_is_built_says_so():
    model = keras.Sequential([keras.layers.Reshape((3,)), keras.layers.Dense(2)])
    trainer = Trainer(model, optimizer="sgd", loss="mse")
    with pytest.raises(Exception, match=r".+") as caught:
        next(trainer.steps(X, Y))
    assert "built for the first batch" in "".join(caught.value.__notes__)


def says_place(error, num_steps):
    """Whether a note says where an error came; TensorFlow asks for a batch inside of its step."""
    note = "".join(getattr(error, "__notes__", []))
    descriptions = (f"after batch {num_steps} of epoch 1", f"with batch {num_steps + 1} of epoch 1")
    return any(description in note for description in descriptions)


@pytest.mark.parametrize("way", ["fit", "steps"])
def test_a_good_batch_before_a_bad_one_is_trained(way, tmp_path):
    def batches():
        for _ in range(3):
            yield X[:8], Y[:8]
        raise ArithmeticError("no fourth batch")

    trainer = Trainer(
        build(), optimizer="sgd", loss="sparse_categorical_crossentropy", checkpoint_dir=tmp_path
    )
    batch_numbers = []
    callback = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: batch_numbers.append(batch)
    )
    with pytest.raises(ArithmeticError, match="no fourth batch") as caught:
        train(trainer, way, batches(), callbacks=callback)
    assert says_place(caught.value, 3)
    assert batch_numbers == [0, 1, 2]


def train(trainer, way, *data, **options):
    if way == "fit":
        trainer.fit(*data, verbose=0, **options)
    else:
        list(trainer.steps(*data, **options))


@pytest.mark.parametrize("way", ["fit", "steps"])
def test_our_errors_about_data_name_the_batch(way, tmp_path):
    def batches():
        yield X[:8], Y[:8]
        yield [X[:8], Y[:8]]

    trainer = Trainer(build(compiled=True), checkpoint_dir=tmp_path)
    with pytest.raises(InvalidInputError, match="must yield tuples") as caught:
        train(trainer, way, batches())
    assert says_place(caught.value, 1)


@pytest.mark.torch_alone
def test_an_error_in_steps_names_the_batch():
    def batches():
        yield X[:8], Y[:8]
        yield X[:8, :3], Y[:8]

    with pytest.raises(Exception, match=r".+") as caught:
        train(Trainer(build(compiled=True)), "steps", batches())
    assert "with batch 2 of epoch 1, both counted from 1" in "".join(caught.value.__notes__)
    with pytest.raises(InvalidInputError, match="has no loss"):
        train(Trainer(build(), optimizer="sgd"), "steps", X, Y)


@pytest.mark.parametrize("checkpoint_dir", ["", 3])
def test_checkpoint_dir_must_be_a_path(checkpoint_dir):
    with pytest.raises(InvalidInputError, match="`checkpoint_dir` must be the path of a folder"):
        Trainer(build(compiled=True), checkpoint_dir=checkpoint_dir)


@pytest.mark.torch_alone
def test_a_batch_without_inputs_is_refused():
    def batches():
        yield X[:8], Y[:8]
        yield X[:8], Y[:8]
        yield None, Y[:8]

    with pytest.raises(Exception, match=r".+"):
        Trainer(build(compiled=True)).fit(batches(), shuffle=False, verbose=0)


class FailingCallback(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        raise ArithmeticError("not now")


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ({}, {"foo": 1}),
        ({"callbacks": [FailingCallback()]}, {}),
    ],
)
def test_an_error_before_the_first_batch_names_no_batch(arguments, options):
    trainer = Trainer(build(), optimizer="sgd", loss="sparse_categorical_crossentropy", **arguments)
    with pytest.raises(Exception, match=r".+") as caught:
        trainer.fit(X, Y, verbose=0, **options)
    assert not any("batch" in note for note in getattr(caught.value, "__notes__", []))


@pytest.mark.torch_alone
def test_an_error_after_a_step_names_the_batch_before():
    def fail(*arguments):
        raise ArithmeticError("not now")

    def bad():
        yield X[:8, :3], Y[:8]

    trainer = Trainer(build(compiled=True))
    callback = keras.callbacks.LambdaCallback(on_epoch_end=fail)
    with pytest.raises(ArithmeticError) as caught:
        trainer.fit(X, Y, batch_size=16, verbose=0, callbacks=[callback])
    assert "The error came after batch 4 of" in "".join(caught.value.__notes__)
    with pytest.raises(Exception, match=r".+") as caught:
        trainer.fit(X, Y, batch_size=16, verbose=0, validation_data=bad())
    assert "in the validation after batch 4 of" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("way", ["fit", "steps"])
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epochs": -1}, "`epochs` must be an integer of at least 0, received -1"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer, received 0"),
        ({"resume": "yes"}, "`resume` must be True or False, received 'yes'"),
        ({"callbacks": 3}, r"Expected a keras\.callbacks\.Callback; received int: 3"),
        ({"callbacks": [print]}, r"Expected a keras\.callbacks\.Callback"),
        ({"steps_per_epoch": 0}, "`steps_per_epoch` must be a positive integer, received 0"),
    ],
)
def test_invalid_arguments_are_refused_by_name(way, options, match):
    with pytest.raises(InvalidInputError, match=match):
        train(Trainer(build(compiled=True)), way, X, Y, **options)


@pytest.mark.parametrize("folder", [None, "checkpoints"])
def test_zero_epochs_make_no_step(tmp_path, folder):
    trainer = Trainer(build(compiled=True), checkpoint_dir=folder and tmp_path / folder)
    old_weights = trainer.model.get_weights()
    assert trainer.fit(X, Y, epochs=0, verbose=0).history == {}
    assert list(trainer.steps(X, Y, epochs=0)) == []
    for received, old_weight in zip(trainer.model.get_weights(), old_weights, strict=True):
        np.testing.assert_array_equal(received, old_weight)


@pytest.mark.torch_alone
def test_one_callback_needs_no_list():
    stop = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=9.0, start_from_epoch=1)
    assert len(Trainer(build(compiled=True), callbacks=stop).fit(X, Y, 64, 9, 0).epoch) < 9
    trainer = Trainer(build(compiled=True))
    assert len(trainer.fit(X, Y, 64, 9, 0, stop).epoch) < 9
    assert len(list(trainer.steps(X, Y, 64, 9, stop))) < 9


def test_data_without_a_batch_are_refused():
    trainer = Trainer(build(), optimizer="sgd", loss="sparse_categorical_crossentropy")
    with pytest.raises(InvalidInputError, match="The training data hold no batch"):
        trainer.fit(X[:0], Y[:0], verbose=0)
    with pytest.raises(InvalidInputError, match="The training data hold no batch"):
        trainer.fit([], [])
    for way in ("fit", "steps"):
        with pytest.raises(InvalidInputError, match="no training data: `x` is None"):
            train(trainer, way)


def test_two_schedules_are_refused():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    trainer = Trainer(model, optimizer=keras.optimizers.SGD(schedule), loss="mse")
    trainer.add_callback(keras.callbacks.ReduceLROnPlateau("loss"))
    with pytest.raises(InvalidInputError, match="can have only one schedule, received 2"):
        trainer.fit(np.ones((4, 4)), np.ones((4, 1)), verbose=0)


def test_no_rows_can_be_evaluated_or_predicted():
    trainer = Trainer(build(compiled=True))
    with pytest.raises(InvalidInputError, match="The test data hold no batch"):
        trainer.evaluate(X[:0], Y[:0], verbose=0)
    with pytest.raises(InvalidInputError, match="The data to predict hold no batch"):
        trainer.predict(X[:0], verbose=0)


@pytest.mark.parametrize("size", [0, 8.0])
def test_a_batch_size_that_is_no_size_is_refused(size):
    trainer = Trainer(build(compiled=True))
    for call in (trainer.evaluate, trainer.predict):
        with pytest.raises(InvalidInputError, match="`batch_size` must be a positive integer"):
            call(X, batch_size=size, verbose=0)


def test_an_argument_that_fit_does_not_know_is_named():
    trainer = Trainer(build(), optimizer="sgd", loss="mse")
    with pytest.raises(InvalidInputError, match=r"fit\(\) argument 'epoch': did you mean 'epochs'"):
        trainer.fit(np.ones((4, 4)), np.ones((4, 1)), epoch=3)


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_a_model_has_its_weights_after_a_batch_that_fails(method):
    """Keras on JAX takes them away while it computes, and forgets them where the first fails."""
    layers = [keras.layers.Conv1D(2, 5), keras.layers.GlobalMaxPooling1D(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((None, 3)), *layers])
    trainer = Trainer(model, optimizer="sgd", loss="mse")
    old_weights = model.get_weights()
    targets = {} if method == "predict" else {"y": np.ones((2, 1))}
    with pytest.raises(Exception, match="Conv1D"):
        getattr(trainer, method)(np.ones((2, 3, 3)), **targets, verbose=0)
    for received, old_weight in zip(model.get_weights(), old_weights, strict=True):
        np.testing.assert_array_equal(received, old_weight)
    getattr(trainer, method)(np.ones((2, 7, 3)), **targets, verbose=0)
