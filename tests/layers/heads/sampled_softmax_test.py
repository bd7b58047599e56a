import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.artifacts import InvalidInputError
from keras_deepseek.layers import SampledSoftmax
from keras_deepseek.testing import assert_close
from keras_deepseek.training import Trainer

CLASSES, DIM = 12, 5


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def draw(*shape, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(*shape, DIM)).astype("float32")
    return hidden, rng.integers(1, CLASSES, shape).astype("int32")


def make_head(**options):
    options = {"num_negatives": 20, "seed": 3, "kernel_initializer": "normal", **options}
    return SampledSoftmax(CLASSES, **options)


def expected_losses(head, hidden, targets, drawn):
    logs = to_numpy(head.log_probabilities).astype("float64")
    scores = hidden.astype("float64") @ to_numpy(head.projection()[0]) - logs
    positive = np.take_along_axis(scores, targets[..., None], axis=-1)
    among = np.concatenate([positive, scores[..., drawn]], axis=-1)
    return np.log(np.exp(among).sum(axis=-1)) - positive[..., 0]


@pytest.mark.parametrize("weights", [None, np.arange(CLASSES) + 1.0])
@pytest.mark.parametrize("shape", [(4,), (2, 3)])
def test_it_computes_the_formula_of_what_was_drawn(weights, shape):
    hidden, targets = draw(*shape)
    head, twin = (make_head(class_weights=weights) for _ in range(2))
    losses = to_numpy(head(hidden, targets))
    twin(hidden, targets)
    again = make_head(class_weights=weights)
    again.build(hidden.shape)
    drawn = to_numpy(again.draw_classes())
    assert_close(losses, expected_losses(head, hidden, targets, drawn))
    assert_close(to_numpy(head.losses[0]), losses.mean())
    assert_close(to_numpy(twin(hidden)), hidden @ to_numpy(twin.projection()[0]))


@pytest.mark.parametrize("weights", [None, [5, 1, 1, 2, 3, 8, 1, 1, 1, 4, 1, 1]])
def test_classes_are_drawn_by_their_weights_and_the_ignored_one_never(weights):
    head = make_head(num_negatives=60_000, class_weights=weights, ignore_class=0)
    head.build((None, DIM))
    shares = np.bincount(to_numpy(head.draw_classes()), minlength=CLASSES) / 60_000
    expected = np.array([0] + [1] * 11 if weights is None else [0, *weights[1:]], "float64")
    assert shares[0] == 0
    assert np.abs(shares - expected / expected.sum()).max() < 0.006


def test_each_call_draws_anew():
    hidden, targets = draw(3)
    head = make_head()
    first, second = (to_numpy(head(hidden, targets)) for _ in range(2))
    assert np.any(first != second)


def test_corrected_it_learns_the_probabilities_whatever_is_drawn():
    # Targets of a known distribution, one hidden state: the logits end at its logarithms.
    rng = np.random.default_rng(0)
    truth = rng.dirichlet(np.ones(CLASSES) * 6)
    targets = rng.choice(CLASSES, 20_000, p=truth).astype("int32")
    truth = np.bincount(targets, minlength=CLASSES) / len(targets)
    hidden = np.ones((len(targets), 1), "float32")
    head = make_head(num_negatives=200, class_weights=np.arange(CLASSES) + 1.0)
    inputs = [keras.Input((1,)), keras.Input((), dtype="int32")]
    model = keras.Model(inputs, head(*inputs))
    for rate in (0.1, 0.02, 0.005):
        model.compile(keras.optimizers.Adam(rate))
        model.fit([hidden, targets], batch_size=400, epochs=2, verbose=0)
    learned = to_numpy(keras.ops.softmax(head(hidden[:1])))[0]
    assert np.abs(np.log(learned) - np.log(truth)).max() < 0.25


def test_what_does_not_count_has_no_loss_and_no_gradient():
    hidden, targets = draw(2, 3)
    targets[0, 1] = 0
    weights = np.ones((2, 3), "float32")
    weights[1, 0] = 0
    mask = np.ones((2, 3), bool)
    mask[1, 2] = False
    head = make_head(ignore_class=0)
    losses = to_numpy(head(hidden, targets, sample_weight=weights, mask=mask))
    counts = (targets != 0) & (weights > 0) & mask
    assert np.all((losses != 0) == counts)
    assert_close(to_numpy(head.losses[0]), losses.sum() / counts.sum())

    def objective(hidden):
        return keras.ops.sum(head(hidden, targets, sample_weight=weights, mask=mask))

    ((by_hidden,), _) = backend.current().compute.compute_gradients(objective, [hidden], [])
    assert np.all(np.any(np.asarray(by_hidden) != 0, axis=-1) == counts)


def test_nothing_that_counts_is_a_loss_of_zero():
    hidden, targets = draw(2, 3)
    head = make_head(ignore_class=0)
    head(hidden, 0 * targets)
    assert float(to_numpy(head.losses[0])) == 0


def test_a_target_that_is_no_class_shows():
    hidden, targets = draw(2, 3)
    targets[0, 0] = CLASSES
    losses = to_numpy(make_head()(hidden, targets))
    assert np.isnan(losses[0, 0])
    assert np.isnan(losses).sum() == 1


@pytest.mark.parametrize("uses_trainer", [False, True])
@pytest.mark.each_backend
def test_it_trains_a_shared_embedding_and_is_saved_with_it(uses_trainer, tmp_path):
    tokens = np.random.default_rng(0).integers(1, CLASSES, (64, 6)).astype("int32")
    targets = (tokens % (CLASSES - 1) + 1).astype("int32")
    inputs = [keras.Input((None,), dtype="int32") for _ in range(2)]
    embedding = keras.layers.Embedding(CLASSES, 8, name="tokens")
    hidden = keras.layers.Dense(8)(embedding(inputs[0]))
    head = SampledSoftmax(token_embedding=embedding, num_negatives=8, ignore_class=0, seed=0)
    model = keras.Model(inputs, head(hidden, inputs[1]))
    model.compile(keras.optimizers.Adam(0.03))
    fit = Trainer(model).fit if uses_trainer else model.fit
    losses = fit([tokens, targets], batch_size=16, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < 0.3 * losses[0]
    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    for ours, theirs in zip(model.get_weights(), revived.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_in_half_precision_losses_are_near_and_their_mean_in_full(dtype):
    hidden, targets = draw(4, 3)
    weights = np.arange(CLASSES) + 1.0
    full, half = (
        make_head(dtype=head_dtype, class_weights=weights) for head_dtype in ("float32", dtype)
    )
    full.build(hidden.shape)
    half.build(hidden.shape)
    half.set_weights(full.get_weights())
    expected, half_losses = to_numpy(full(hidden, targets)), half(hidden, targets)
    assert keras.backend.standardize_dtype(half_losses.dtype) == dtype.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(half.losses[0].dtype) == "float32"
    assert np.abs(to_numpy(keras.ops.cast(half_losses, "float32")) - expected).max() < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_negatives": 0}, "`num_negatives` must be"),
        ({"class_weights": [1, 2]}, "one number for each of the 12 classes"),
        ({"class_weights": [1] * 11 + [0]}, "received 0.0 for class 11"),
        ({"class_weights": [1] * 11 + [np.nan]}, "received nan for class 11"),
        ({"ignore_class": 1.5}, "`ignore_class` must be"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        make_head(**options)


def test_targets_that_do_not_fit_are_refused():
    hidden, targets = draw(2, 3)
    with pytest.raises(InvalidInputError, match="`targets` must have one entry for each token"):
        make_head()(hidden, targets[:, :2])
