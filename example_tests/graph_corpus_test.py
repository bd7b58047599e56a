"""`graph.optimize` on a corpus of models, in float32 and bfloat16: `tox -e examples`.

With `-s`, it prints a row of a table for each model, as in docs/graph_corpus.md.
"""

import keras
import numpy as np
import pytest
from keras import ops, tree

from example_tests.graph_corpus import BUILDERS, build, draw_inputs
from keras_deepseek import graph
from keras_deepseek.backend.keras_private.layers import (
    flatten_layers,
    functional_graph,
    unchanged_state,
)
from keras_deepseek.deploy import Exporter
from keras_deepseek.graph.verify import Verifier
from keras_deepseek.inference import ServingEngine

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:Gradients do not exist for variables"),
    pytest.mark.filterwarnings("ignore:graph.optimize returns the original"),  # It is asserted.
    # Keras's attention and KerasHub's own `compile` and `fit` warn.
    pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask"),
    pytest.mark.filterwarnings("ignore:`compile:UserWarning"),
    pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning"),
]

BACKEND = keras.backend.backend()
POLICIES = ("float32", "mixed_bfloat16")
ROWS, LENGTH = 4, 8
SERVED = ("first_token_classifier", "lora", "cnn_batch_norm", "kerashub_bert_classifier")
UNTRACED_IN_TRAINING = ("deepseek_v3_causal_lm",)
"""Its layer for further tokens adds a loss, and has no other outputs. The original is trained."""
OF_UNKNOWN_CODE = ("subclassed",)
"""Its `call` is neither Keras's nor ours. The original is run."""
REFUSED_IN_TRAINING = (("deepseek_v4_causal_lm", "mixed_bfloat16"),)
"""Gradients of three and four numbers may be off by over twice as much as the original's."""
FITTED = {"resnet_v2": (48, 32)}
"""The rows of `fit` and of its batches, other than 10 and 4.

The last stage of `resnet_v2` normalizes over the rows alone. In batches of four and two rows, the
float64 rounding of a gradient (2e-15) grows to a change of the weights by twice their largest.
"""
EXPORTED = (
    *SERVED,
    *("mobilenet", "dict_inputs_and_outputs", "nested_subclassed", "masked_lstm"),
    *("latent_attention", "mixture_of_experts", "gru_with_initial_state"),
)


class Case:
    """A model, the model optimized for inference, and the names of the tests that it passed."""

    def __init__(self, name, policy):
        self.name, self.policy, self.passed = name, policy, []
        self.model = build(name, policy)
        self.inputs = self.draw(ROWS)
        self.optimized = graph.optimize(self.model, self.inputs, measure=False)

    @property
    def has_free_batch(self):
        functional = functional_graph(self.model)
        return functional is None or all(
            input_tensor.shape[0] is None for input_tensor in functional.inputs
        )

    def draw(self, rows, length=LENGTH):
        return draw_inputs(self.model, rows, length)

    def compare(self, optimized, rows):
        """Compares with the model on a batch; a program must run it, if there is one."""
        inputs = tree.map_structure(ops.convert_to_tensor, self.draw(rows))
        for layer in flatten_layers(self.model) + flatten_layers(optimized):
            if getattr(layer, "stateful", False):
                layer.reset_state()
        Verifier(self.model, [inputs], training=False).compare(optimized)
        assert optimized.passes is None or optimized.has_program(inputs)

    def __str__(self):
        report = self.optimized.report
        columns = (
            f"`{self.name}`",
            {"float32": "float32", "mixed_bfloat16": "bfloat16"}[self.policy],
            "{:,} → {:,}".format(*report.operations),
            "{:,} → {:,}".format(*report.multiply_adds),
            str(len(report.leaves)),
            ", ".join(report.rewrites) or "-",
            ", ".join(self.passed),
        )
        return f"| {' | '.join(columns)} |"


def measure_difference(expected, received):
    """Returns the largest difference of losses and changes, as a share of the largest of each."""
    (loss, *changes), (other_loss, *other_changes) = expected, received
    largest = max(np.abs(change).max(initial=0) for change in changes)
    assert largest > 0
    pairs = zip(changes, other_changes, strict=True)
    differences = [
        np.abs(expected_change - received_change).max(initial=0) / largest
        for expected_change, received_change in pairs
    ]
    return max(*differences, abs(other_loss[0] / loss[0] - 1))


@pytest.fixture(
    scope="module",
    params=[(name, policy) for name in BUILDERS for policy in POLICIES],
    ids="-".join,
)
def case(request):
    new_case = Case(*request.param)
    yield new_case
    print(f"\n{new_case}")


def test_batch_sizes_that_were_not_traced(case):
    assert (case.optimized.report.failure is None) == (case.name not in OF_UNKNOWN_CODE)
    for rows in (7, 3) if case.has_free_batch else (ROWS,):
        case.compare(case.optimized, rows)
    case.passed.append("batch sizes")


def test_fit_with_a_ragged_last_batch(case):
    is_stateful = any(getattr(layer, "stateful", False) for layer in flatten_layers(case.model))
    if is_stateful and BACKEND == "torch":
        pytest.skip("Keras assigns the states in place, and PyTorch then has no gradient.")
    rows, batch_size = FITTED.get(case.name, (10, ROWS))
    inputs = case.draw(rows if case.has_free_batch else ROWS)
    random = np.random.default_rng(0)
    outputs = case.model.predict(inputs, batch_size=ROWS, verbose=0)
    is_float = [keras.backend.is_float_dtype(str(output.dtype)) for output in tree.flatten(outputs)]
    losses = tree.pack_sequence_as(outputs, ["mse" if has_loss else None for has_loss in is_float])
    if not case.model.trainable_variables or not any(is_float):
        pytest.skip("It has nothing to train.")
    targets = tree.map_structure(
        lambda output: random.normal(size=output.shape).astype("float32"), outputs
    )
    for layer in flatten_layers(case.model):
        if type(layer) is keras.layers.Dropout:
            layer.rate = 0.0  # Rows are cut through dropout, which then draws other numbers.
    weights = case.model.get_weights()

    def train(model):
        """Returns the loss and the changes of the weights, which are put back."""
        keras.utils.set_random_seed(0)
        old_weights = case.model.get_weights()
        with unchanged_state(case.model):
            model.compile(
                keras.optimizers.SGD(1e-3), losses, metrics=[], jit_compile=BACKEND == "jax"
            )
            history = model.fit(inputs, targets, batch_size=batch_size, shuffle=False, verbose=0)
            changes = [a - b for a, b in zip(case.model.get_weights(), old_weights, strict=True)]
        case.model.set_weights(weights)
        return [history.history["loss"], *changes]

    try:
        expected = train(case.model)
    except Exception as error:  # noqa: BLE001
        pytest.skip(f"Keras itself does not train it: {error}")
    optimized = graph.optimize(case.model, case.inputs, mode="train", measure=False)
    may_fail = (
        case.name in (*UNTRACED_IN_TRAINING, *OF_UNKNOWN_CODE)
        or (case.name, case.policy) in REFUSED_IN_TRAINING
    )
    assert optimized.report.failure is None or may_fail
    received = train(optimized)
    # Each batch ran a program. After batches of two sizes, TensorFlow compiles `fit` for any size,
    # and a program that fixes the batch size is of no use.
    for (_, shapes, _), plan in optimized._plans._plans.items():
        assert plan is not None or any(None in shape for shape in shapes)
    allowed, rounding = (3e-3, 1e-6) if case.policy == "float32" else (0.1, 2.0**-8)
    difference = measure_difference(expected, received)
    if difference > allowed:  # Batches of two rows normalize rounding errors to large numbers.
        case.model.set_weights(
            [weight * (1 + rounding * random.normal(size=weight.shape)) for weight in weights]
        )
        difference /= measure_difference(expected, train(case.model))
        allowed = 5
    assert difference <= allowed
    case.passed.append("fit")


def test_saved_and_loaded(case, tmp_path):
    case.optimized.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.passes == case.optimized.passes
    case.compare(loaded, ROWS)
    case.passed.append("saved")


def test_exported(case, tmp_path):
    if case.name not in EXPORTED or case.policy != "float32":
        pytest.skip("It is not among those to export.")
    form = "onnx" if BACKEND == "torch" else "savedmodel"
    path = tmp_path / ("model.onnx" if form == "onnx" else "model")
    assert Exporter(case.model, form, optimize_graph=True, verbose=0).export(path).verified
    case.passed.append(form)


def test_served_by_two_replicas(case):
    if case.name not in SERVED:
        pytest.skip("It is not among those to serve.")
    batches = [case.draw(rows) for rows in (2, 3, 5, 7)]
    # Before: on JAX, Keras's `predict` takes the variables away for a while.
    all_expected = [case.model.predict(batch, verbose=0) for batch in batches]
    with ServingEngine(case.optimized, replicas=2) as engine:
        answers = [engine.submit(batch) for batch in batches]
        for expected, answer in zip(all_expected, answers, strict=True):
            received = next(iter(answer.result().values()))
            atol = 1e-5 if case.policy == "float32" else 0.05
            np.testing.assert_allclose(received, expected, atol=atol)
    case.passed.append("served")
