import re

import keras
import numpy as np
import pytest

from keras_deepseek import graph
from keras_deepseek.artifacts.checkpoint_folder import CheckpointFolder
from keras_deepseek.artifacts.run_record import RunRecord
from keras_deepseek.callbacks import LRScheduler, RunRecorder
from keras_deepseek.errors import InvalidInputError, TrainingDivergedError
from keras_deepseek.layers import DeepSeekMoE, ExpertRouter
from keras_deepseek.training import Trainer

RNG = np.random.default_rng(0)
X = RNG.normal(scale=0.2, size=(40, 4)).astype("float32")  # Float16 scales no gradient to infinity.
Y = X.sum(axis=1, keepdims=True)
RATE = 0.01


def build():
    dense = keras.layers.Dense(1, use_bias=False, name="head")
    return keras.Sequential([keras.Input((4,)), dense], name="line")


def fit(trainer, **options):
    return trainer.fit(X, Y, batch_size=16, verbose=0, shuffle=False, **options)


def sgd_steps(weights, epochs):
    """Returns loss, gradient norm and update ratio of each step, in float64."""
    rows = []
    for start in [0, 16, 32] * epochs:
        x, y = X[start : start + 16].astype("float64"), Y[start : start + 16]
        error = x @ weights - y
        gradient = 2 * x.T @ error / len(x)
        norm = np.linalg.norm(gradient)
        rows.append((np.mean(error**2), norm, RATE * norm / np.linalg.norm(weights)))
        weights = weights - RATE * gradient
    return np.array(rows)


def column(record, name):
    return [value for _, value in record.scalars(name)]


@pytest.mark.parametrize(
    "options",
    [{}, {"micro_batches": 2, "guard": "skip"}, {"precision": "float16"}],
)
def test_each_step_has_its_own_loss_and_its_layers_statistics(tmp_path, options):
    trainer = Trainer(
        build, optimizer=keras.optimizers.SGD(RATE), loss="mse", layer_statistics=True, **options
    )
    expected = sgd_steps(trainer.model.get_weights()[0].astype("float64"), epochs=3)
    fit(trainer)  # A step that was compiled without metrics is compiled again.
    trainer.record_run(tmp_path / "run.sqlite")
    history = fit(trainer, epochs=2).history
    assert "step_metrics" not in history
    tolerance = 0.02 if "precision" in options else 1e-4
    with RunRecord(tmp_path / "run.sqlite", read_only=True) as record:
        loss, norm, ratio = expected[3:].T
        np.testing.assert_allclose(column(record, "step_loss"), loss, rtol=tolerance)
        np.testing.assert_allclose(column(record, "gradient_norm"), norm, rtol=tolerance)
        np.testing.assert_allclose(column(record, "learning_rate"), [RATE] * 6, rtol=1e-6)
        for name, values in (("layer_gradient_norms", norm), ("layer_update_ratios", ratio)):
            steps, vectors = zip(*record.vectors(name), strict=True)
            assert steps == (4, 5, 6, 7, 8, 9)
            np.testing.assert_allclose(np.ravel(vectors), values, rtol=tolerance)
            assert record.document(f"vector:{name}") == {"labels": ["line/head"]}


def test_a_warm_up_is_recorded_step_by_step(tmp_path):
    warm_up = LRScheduler(lambda step, total, *_: step / total, total_steps=6)
    trainer = Trainer(build, optimizer="sgd", loss="mse", callbacks=warm_up)
    trainer.record_run(tmp_path / "run.sqlite")
    fit(trainer, epochs=2)
    with RunRecord(tmp_path / "run.sqlite", read_only=True) as record:
        rates = column(record, "learning_rate")
        np.testing.assert_allclose(rates, np.arange(6) / 6, atol=1e-6)


def test_the_load_of_each_expert_is_recorded(tmp_path):
    model = keras.Sequential(
        [keras.Input((4,)), DeepSeekMoE(ExpertRouter(3, 1, name="router"), intermediate_dim=2)]
    )
    trainer = Trainer(model, optimizer="sgd", loss="mse", layer_statistics=True)
    trainer.record_run(tmp_path / "run.sqlite")
    trainer.fit(X, X, batch_size=20, verbose=0)
    with RunRecord(tmp_path / "run.sqlite", read_only=True) as record:
        assert [vector.sum() for _, vector in record.vectors("expert_load")] == [20, 20]
        labels = record.document("vector:expert_load")["labels"]
        assert [label.rpartition("/")[2] for label in labels] == ["0", "1", "2"]


def test_the_wait_for_a_batch_is_recorded(tmp_path, monkeypatch):
    clock = iter(range(1000))

    def batches():
        for _ in range(3):
            yield X[:8], Y[:8]

    trainer = Trainer(build, optimizer="sgd", loss="mse", run_record=tmp_path / "run.sqlite")
    monkeypatch.setattr(
        "keras_deepseek.backend.data.batch_stream.time.perf_counter", lambda: float(next(clock))
    )
    trainer.fit(batches(), steps_per_epoch=3, verbose=0)
    with RunRecord(tmp_path / "run.sqlite", read_only=True) as record:
        assert len(column(record, "data_wait_seconds")) == 3
        assert min(column(record, "data_wait_seconds")) >= 1.0


def test_the_run_is_described(tmp_path):
    trainer = Trainer(build, optimizer=keras.optimizers.SGD(RATE), loss="mse", gradient_clip=None)
    trainer.record_run(tmp_path / "run.sqlite")
    fit(trainer)
    with RunRecord(tmp_path / "run.sqlite", read_only=True) as record:
        properties = record.properties()
    assert (properties["state"], properties["failure"], properties["model"]) == (
        "finished",
        None,
        "line",
    )
    assert properties["started"] <= properties["heartbeat"] <= properties["ended"]
    arguments = properties["arguments"]
    assert (arguments["optimizer"], arguments["batch_size"], arguments["loss"]) == (
        *("SGD", 16, "mse"),
    )
    assert arguments["learning_rate"] == pytest.approx(RATE)
    assert properties["versions"]["keras"] == keras.__version__


def test_the_reason_of_a_failure_is_recorded(tmp_path):
    trainer = Trainer(build, optimizer="sgd", loss="mse", run_record=tmp_path / "run.sqlite")
    with pytest.raises(TrainingDivergedError):
        trainer.fit(X, np.full_like(Y, np.nan), verbose=0)
    with RunRecord(tmp_path / "run.sqlite", read_only=True) as record:
        assert record.properties()["state"] == "failed"
        assert re.match("TrainingDivergedError: .*loss", record.properties()["failure"])


class Ask(keras.callbacks.Callback):
    """Asks for a command after the first batch, and lets the recorder find it at once."""

    def __init__(self, path, *names):
        super().__init__()
        self.path, self.names, self.has_asked = path, names, False

    def on_train_batch_end(self, batch, logs=None):
        if not self.has_asked:
            self.has_asked = True
            with RunRecord(self.path) as record:
                for name in self.names:
                    record.ask(name)
            while len(self.recorder._asked) < len(self.names):
                pass


def train_with_commands(path, *names, epochs=2, **options):
    ask = Ask(path, *names)
    trainer = Trainer(build, optimizer="sgd", loss="mse", callbacks=ask, **options)
    trainer.record_run(path)
    ask.recorder = trainer._recorder
    fit(trainer, epochs=epochs)
    with RunRecord(path, read_only=True) as record:
        return [command.answer for command in record.commands()], record.properties()["state"]


@pytest.fixture
def beats_at_once(monkeypatch):
    monkeypatch.setattr(RunRecorder, "_seconds_between_beats", 0.001)


@pytest.mark.usefixtures("beats_at_once")
def test_a_command_stops_the_training(tmp_path):
    answers, state = train_with_commands(tmp_path / "run.sqlite", "stop")
    assert (answers, state) == (["stops after step 2"], "stopped")


@pytest.mark.usefixtures("beats_at_once")
def test_a_command_takes_a_checkpoint(tmp_path):
    answers, state = train_with_commands(
        tmp_path / "run.sqlite", "checkpoint", checkpoint_dir=tmp_path / "c", keep_last=9
    )
    assert (answers, state) == (["takes a checkpoint after step 2"], "finished")
    assert CheckpointFolder(tmp_path / "c").steps() == [2, 3, 6]


@pytest.mark.torch_alone
@pytest.mark.usefixtures("beats_at_once")
def test_a_command_that_cannot_be_carried_out_is_answered(tmp_path):
    answers, _ = train_with_commands(tmp_path / "run.sqlite", "checkpoint", "dance")
    assert answers == [
        "no checkpoint: the training has no checkpoint_dir",
        "unknown command 'dance'; known: stop, checkpoint, profile",
    ]


@pytest.mark.usefixtures("beats_at_once")
def test_a_command_profiles_five_steps_of_the_running_training(tmp_path):
    path = tmp_path / "run.sqlite"
    train_with_commands(tmp_path / "without.sqlite", epochs=3, seed=1)
    answers, state = train_with_commands(path, "profile", "profile", epochs=3, seed=1)
    refusal = "no profile: The steps of this training are being profiled already."
    assert (answers, state) == (["profiled 5 steps", refusal], "finished")
    assert path.with_suffix(".profile.json.gz").exists()
    with RunRecord(path, read_only=True) as record:
        profile = record.document("profile")
        nodes = record.document("model_graph")["children"]
        assert profile["steps"] == 5
        assert set(profile["layers"]) <= {profile["model"], *(node["path"] for node in nodes)}
        # A program that another process left in JAX's persistent cache has lost its names.
        assert profile["parts"]["optimizer"] > 0 or keras.backend.backend() == "jax"
        losses = column(record, "step_loss")
    with RunRecord(tmp_path / "without.sqlite", read_only=True) as record:
        assert losses == column(record, "step_loss")  # To the bit.


@pytest.mark.torch_alone
@pytest.mark.usefixtures("beats_at_once")
def test_a_profile_ends_with_the_training(tmp_path):
    answers, _ = train_with_commands(tmp_path / "run.sqlite", "profile")
    assert answers == ["nothing: the training has ended"]
    with RunRecord(tmp_path / "run.sqlite", read_only=True) as record:
        assert record.document("profile") is None


@pytest.mark.torch_alone
def test_results_of_searches_are_documents(tmp_path):
    trainer = Trainer(build, optimizer="sgd", loss="mse")
    trainer.measure_memory(X, Y)  # Nothing is recorded yet.
    path = trainer.record_run(tmp_path / "run.sqlite")
    report = trainer.measure_memory(X, Y)
    search = trainer.find_learning_rate(X, Y, num_steps=10)
    fit(trainer)
    trainer.find_batch_size(X, Y, max_batch_size=16)
    with RunRecord(path, read_only=True) as record:
        assert record.document("memory")["activations"] == report.activations
        assert record.document("learning_rate_search")["rates"] == search.rates
        assert record.document("batch_size_search")["batch_sizes"][0] == 8


@pytest.mark.torch_alone
def test_a_run_has_one_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = Trainer(build, optimizer="sgd", loss="mse")
    path = trainer.record_run()
    assert re.fullmatch(r"runs/line-\d{8}-\d{6}-\d{3}\.sqlite", path.as_posix())
    assert trainer.record_run() == trainer.record_run(path) == path
    assert Trainer(build, optimizer="sgd", loss="mse").record_run() != path
    with pytest.raises(InvalidInputError, match="records its run in 'runs"):
        trainer.record_run("other.sqlite")


@pytest.mark.torch_alone
def test_own_steps_have_no_layer_statistics():
    class Own(keras.Model):
        def train_step(self, data):
            return {}

    inputs = keras.Input((4,))
    model = Own(inputs, keras.layers.Dense(1)(inputs))
    with pytest.raises(InvalidInputError, match="which would ignore `layer_statistics`"):
        Trainer(model, optimizer="sgd", loss="mse", layer_statistics=True)


def test_the_graph_of_the_model_is_a_document(tmp_path):
    trainer = Trainer(build, optimizer="sgd", loss="mse", run_record=tmp_path / "run.sqlite")
    fit(trainer)
    with RunRecord(tmp_path / "run.sqlite", read_only=True) as record:
        drawn = record.document("model_graph")
    head = next(node for node in drawn["children"] if node["name"] == "head")
    assert (head["out"], head["params"]) == ([[[16, 1], "float32"]], 4)
    assert head["flops"] == 2 * 16 * 4


def first_token_classifier():
    inputs = keras.Input((16, 32))
    hidden = keras.layers.MultiHeadAttention(4, 8, name="attention")(inputs, inputs)
    outputs = keras.layers.Dense(1, name="head")(hidden[:, 0])
    return keras.Model(inputs, outputs, name="first_token")


@pytest.mark.torch_alone
def test_the_graph_of_an_optimized_step_is_a_document(tmp_path):
    trainer = Trainer(
        first_token_classifier,
        optimizer="sgd",
        loss="mse",
        optimize_graph=True,
        run_record=tmp_path / "run.sqlite",
    )
    trainer.fit(np.ones((16, 16, 32)), np.ones((16, 1)), batch_size=16, verbose=0)
    with RunRecord(tmp_path / "run.sqlite", read_only=True) as record:
        built, optimized = map(record.document, ("model_graph", "model_graph_optimized"))
    assert optimized["flops"] < 0.7 * built["flops"]  # 15 of 16 rows are not read.
    assert {node["path"] for node in optimized["children"]} >= {"attention", "head"}


@pytest.mark.torch_alone
def test_the_graph_of_an_optimized_model_is_a_document(tmp_path):
    example = np.ones((16, 16, 32), "float32")
    model = graph.optimize(first_token_classifier(), example, mode="train", measure=False)
    trainer = Trainer(model, optimizer="sgd", loss="mse", run_record=tmp_path / "run.sqlite")
    trainer.fit(example, np.ones((16, 1)), batch_size=16, verbose=0)
    with RunRecord(tmp_path / "run.sqlite", read_only=True) as record:
        built, optimized = map(record.document, ("model_graph", "model_graph_optimized"))
    assert optimized["flops"] < built["flops"]


def test_a_graph_that_fails_does_not_end_the_training(tmp_path, monkeypatch, caplog):
    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr("keras_deepseek.training.fit.recording.draw_layers", fail)
    trainer = Trainer(build, optimizer="sgd", loss="mse", run_record=tmp_path / "run.sqlite")
    fit(trainer)
    assert "no document 'model_graph'" in caplog.text
    with RunRecord(tmp_path / "run.sqlite", read_only=True) as record:
        assert record.document("model_graph") is None
        assert record.properties()["state"] == "finished"


@pytest.mark.torch_alone
def test_a_model_of_unknown_inputs_lists_its_layers(tmp_path):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = keras.layers.Dense(1, name="head")

        def call(self, x):
            return self.head(x)

        def train_step(self, *arguments):
            return super().train_step(*arguments)

    trainer = Trainer(Own(), optimizer="sgd", loss="mse", run_record=tmp_path / "run.sqlite")
    fit(trainer)
    with RunRecord(tmp_path / "run.sqlite", read_only=True) as record:
        drawn = record.document("model_graph")
    assert drawn["reason"] == "the shapes of the inputs are not known"
    assert [node["name"] for node in drawn["children"]] == ["head"]
