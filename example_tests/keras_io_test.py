"""Official examples of keras.io under our `Trainer`, `Exporter` and engine: `tox -e examples`.

Each step of each example works as the example's author would expect, or is refused by a message
that the example names. `write_table.py` makes a table of what `--junitxml` has recorded.
"""

import contextlib

import keras
import numpy as np
import pytest

from example_tests.keras_io.example import Example
from example_tests.keras_io.examples import EXAMPLES
from example_tests.keras_reference import add_sparse_gradients_up, assert_same
from keras_deepseek.artifacts import KerasDeepSeekError
from keras_deepseek.deploy import Exporter
from keras_deepseek.inference import ServingEngine
from keras_deepseek.training import Trainer
from tests.oracles.interruption import EndAt, KilledError

pytestmark = [
    # Of Keras: what a translator's decoder, a model in a model, does not hand on.
    pytest.mark.filterwarnings("ignore:.*does not support masking:UserWarning"),
    # Of Keras on JAX, which has no int64.
    pytest.mark.filterwarnings("ignore:.*requested dtype int64:UserWarning"),
]
NUM_ROWS, BATCH_SIZE, STEPS = 16, 4, 8
COMPILE = {"optimizer", "loss", "metrics"}


@pytest.fixture(scope="module", params=EXAMPLES, ids=lambda example: example.path)
def example(request) -> Example:
    return request.param


@pytest.fixture(scope="module")
def trained(example):
    """What the example's author would export, after a training."""
    trainer = make_trainer(example)
    trainer.fit(**data_of(example), epochs=1)
    return example.exported_part(trainer.model)


@pytest.fixture
def outcome_of(example, request):
    """Returns a block that a step of the example passes, or that the example says is refused."""
    # What `record_property` fills; but that warns of the form of file that pytest writes itself.
    properties = request.node.user_properties
    properties.append(("backend", keras.backend.backend()))

    @contextlib.contextmanager
    def block(step):
        refusal = example.refusal(step)
        if refusal is None:
            yield
            properties.append(("outcome", "passed"))
            return
        with pytest.raises(KerasDeepSeekError, match=refusal) as raised:
            yield
        reason = example.reasons.get(step, "")
        properties.append(("outcome", f"refused: {raised.value} {reason}".strip()))

    return block


class SeedBatches(keras.callbacks.Callback):
    """Lets dropout draw the same in two trainings.

    On PyTorch it goes by the generator of the process, of which Keras's `DataLoader` draws too.
    """

    def on_train_batch_begin(self, batch, logs=None):
        keras.utils.set_random_seed(batch)


def make_compiled(example):
    keras.utils.set_random_seed(7)
    model = example.make_model()
    model.compile(**example.compile_arguments())
    return model


def make_trainer(example, *, has_dropout=True, **options):
    """Gives a model with a `compile` of its own compiled, and any other with its arguments."""
    keras.utils.set_random_seed(7)
    model, arguments = example.make_model(), example.compile_arguments()
    if not has_dropout:
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0
    if set(arguments) - COMPILE:
        model.compile(**arguments)
        arguments = {}
    return Trainer(model, **arguments, **options, seed=7)


def data_of(example, batch_size=BATCH_SIZE):
    """Returns the arguments of `fit` in which all trainings here agree."""
    x, y = example.make_data(NUM_ROWS)
    comes_in_batches = isinstance(x, keras.utils.PyDataset)
    sizes = {} if comes_in_batches else {"batch_size": batch_size}
    return {"x": x, "y": y, "shuffle": False, "verbose": 0, **sizes}


def validation_of(example):
    x, y = example.make_data(BATCH_SIZE * 2)
    pair = (x,) if y is None else (x, y)
    return {} if example.has_own_step else {"validation_data": pair}


def assert_near(outputs, expected, tolerance=1e-4):
    expected = keras.tree.flatten(expected)
    for received_output, expected_output in zip(keras.tree.flatten(outputs), expected, strict=True):
        np.testing.assert_allclose(received_output, expected_output, rtol=tolerance, atol=tolerance)


def test_float32(example, outcome_of):
    data = {**data_of(example), **validation_of(example), "epochs": 2}
    by_keras = make_compiled(example)
    add_sparse_gradients_up(by_keras.optimizer)
    expected = by_keras.fit(**data, callbacks=[SeedBatches()]).history
    with outcome_of("float32"):
        trainer = make_trainer(example)
        history = trainer.fit(**data, callbacks=[SeedBatches()]).history
        assert_same(trainer.model, by_keras, 1e-4)
        assert set(history) == set(expected)
        other = example.differs_in_keras.get(keras.backend.backend(), ())
        for name in set(expected) - set(other):
            values = expected[name]
            np.testing.assert_allclose(history[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_half_precision(example, outcome_of):
    parts = {"micro_batches": 2, "gradient_clip": ("global_norm", 1.0)}
    if example.has_own_step:
        with pytest.raises(KerasDeepSeekError, match="would ignore `micro_batches` and `grad"):
            make_trainer(example, fp16_enabled=True, **parts)
        parts = {}
    data = {**data_of(example, batch_size=8), "epochs": 6}
    half = {**example.half_options, "fp16_enabled": True}

    def train(**options):  # Dropout draws otherwise in half precision, and in another batch size.
        return make_trainer(example, has_dropout=False, **options).fit(**data).history

    with outcome_of("half precision"):
        history, expected = train(**parts, **half), train(**parts)
        names = [name for name in expected if "loss" in name]
        difference = 0.05 * max(expected[name][0] for name in names)
        for name in names:
            np.testing.assert_allclose(history[name], expected[name], rtol=0, atol=difference)
        if "loss" in history:  # A GAN has two that go up and down.
            assert history["loss"][-1] < history["loss"][0]
        if parts:  # The first losses are those of whole batches, but for what a batch's norms do.
            np.testing.assert_allclose(history["loss"][0], train()["loss"][0], rtol=0.3)


def test_resume(example, outcome_of, tmp_path):
    data = {**data_of(example), "epochs": 2}

    def make(name):
        return make_trainer(example, checkpoint_dir=tmp_path / name, checkpoint_every=1)

    with outcome_of("resume"):
        whole = make("whole")
        whole.fit(**data)
        with pytest.raises(KilledError):
            make("cut").fit(**data, callbacks=[EndAt(STEPS * 3 // 4)])
        again = make("cut")
        again.fit(**data, resume=True)
        assert_same(again.model, whole.model)
        for optimizer, expected_optimizer in zip(
            *map(optimizers_of, (again.model, whole.model)), strict=True
        ):
            for variable, expected in zip(
                optimizer.variables, expected_optimizer.variables, strict=True
            ):
                np.testing.assert_array_equal(
                    *map(keras.ops.convert_to_numpy, (variable, expected))
                )


def optimizers_of(model):
    attributes = vars(model).values()
    return [
        attribute for attribute in attributes if isinstance(attribute, keras.optimizers.Optimizer)
    ]


@pytest.mark.parametrize("backend", ["onnx", "savedmodel"])
def test_export(example, trained, outcome_of, tmp_path, backend):
    with outcome_of(backend):
        exporter = Exporter(trained, backend, verbose=False, **example.export_options())
        report = exporter.export(tmp_path / "bundle")
        assert report.verification.state == "verified"
        infer = exporter.load(tmp_path / "bundle")
        for inputs in example.fresh_inputs():
            outputs = infer(exporter.signature.bind(inputs))
            outputs = [outputs[spec.name] for spec in exporter.signature.outputs]
            assert_near(outputs, trained.predict(inputs, verbose=0))


def test_served(example, trained, outcome_of, caplog):
    with outcome_of("served"):
        if example.mixes_rows:
            with ServingEngine(trained, batch_size=4):
                assert "max_batch_size=1" in caplog.text
        sizes = {"max_batch_size": 1} if example.mixes_rows else {"batch_size": 4, "max_wait": 1.0}
        for inputs in example.fresh_inputs():
            num_rows = len(keras.tree.flatten(inputs)[0])
            rows = [
                keras.tree.map_structure(lambda array, row=row: array[row : row + 1], inputs)
                for row in range(num_rows)
            ]
            with ServingEngine(trained, **sizes) as engine:
                answers = [engine.submit(row) for row in rows]
                outputs = [[*answer.result().values()] for answer in answers]
            # Not while the engine runs: on JAX `predict` takes the weights away meanwhile.
            for row, row_outputs in zip(rows, outputs, strict=True):
                assert_near(row_outputs, trained.predict(row, verbose=0))
