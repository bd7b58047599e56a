"""KerasHub's tasks under a `Trainer`, with random weights: `tox -e examples`.

Each task trains as its own `fit` does, with and without its preprocessor.
"""

import keras
import numpy as np
import pytest

from example_tests.keras_reference import add_sparse_gradients_up, assert_same
from keras_deepseek.models import enable_lora, merge_lora
from keras_deepseek.training import Trainer
from tests.oracles.interruption import EndAt, KilledError
from tests.oracles.own_step import StepOfItsOwn, apply

keras_hub = pytest.importorskip("keras_hub", reason="tox -e examples has it.")
pytestmark = pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")

SIZES = {
    "vocabulary_size": 20,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 16,
    "max_sequence_length": 8,
    "dropout": 0.0,
}
WORDS = ["a", "b", "c", "the", "dog", "cat"]
LENGTH = SIZES["max_sequence_length"]
NUM_ROWS = 16
RANDOM = np.random.default_rng(0)
TEXTS = [" ".join(RANDOM.choice(WORDS, 5)) for _ in range(NUM_ROWS)]
IDS = RANDOM.integers(5, 11, (NUM_ROWS, LENGTH))
MASK = np.ones((NUM_ROWS, LENGTH), "int32")
CLASSES = RANDOM.integers(0, 2, NUM_ROWS)
IMAGES = RANDOM.integers(0, 256, (NUM_ROWS, 16, 16, 3)).astype("float32")


def bert(*, has_preprocessor):
    backbone = keras_hub.models.BertBackbone(**SIZES)
    preprocessor = None
    if has_preprocessor:
        tokenizer = keras_hub.models.BertTokenizer(
            vocabulary=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
        )
        preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, LENGTH)
    return keras_hub.models.BertTextClassifier(
        backbone=backbone, num_classes=2, preprocessor=preprocessor, dropout=0.0
    )


def gpt2(*, has_preprocessor):
    backbone = keras_hub.models.GPT2Backbone(**SIZES)
    preprocessor = None
    if has_preprocessor:
        letters = sorted({*"".join(WORDS), "Ġ", "Ġa", "<|endoftext|>"})
        tokenizer = keras_hub.models.GPT2Tokenizer(
            vocabulary={letter: index for index, letter in enumerate(letters)}, merges=["Ġ a"]
        )
        preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, LENGTH)
    return keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=preprocessor)


def resnet(*, has_preprocessor):
    backbone = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64], input_conv_kernel_sizes=[3], stackwise_num_filters=[64, 8],
        stackwise_num_blocks=[1, 1], stackwise_num_strides=[1, 2], block_type="basic_block",
        use_pre_activation=True, image_shape=(16, 16, 3),
    )  # fmt: skip
    preprocessor = None
    if has_preprocessor:
        converter = keras_hub.layers.ResNetImageConverter(image_size=(16, 16), scale=1 / 255)
        preprocessor = keras_hub.models.ResNetImageClassifierPreprocessor(converter)
    return keras_hub.models.ResNetImageClassifier(
        backbone=backbone, num_classes=2, preprocessor=preprocessor
    )


BERT_IDS = {"token_ids": IDS, "segment_ids": np.zeros_like(MASK), "padding_mask": MASK}
GPT2_IDS = {"token_ids": IDS, "padding_mask": MASK}
TASKS = {
    "bert, texts": (bert, True, TEXTS, CLASSES),
    "bert, ids": (bert, False, BERT_IDS, CLASSES),
    "gpt2, texts": (gpt2, True, TEXTS, None),
    "gpt2, ids": (gpt2, False, GPT2_IDS, np.roll(IDS, -1, 1)),
    "resnet, raw": (resnet, True, IMAGES, CLASSES),
    "resnet, scaled": (resnet, False, IMAGES / 255, CLASSES),
}


@pytest.fixture(params=TASKS)
def task(request):
    """A function that makes the task anew, with equal weights, and its data."""
    make, has_preprocessor, x, y = TASKS[request.param]

    def make_task():
        keras.utils.set_random_seed(7)
        return make(has_preprocessor=has_preprocessor)

    return make_task, x, y


def train_arguments():
    return {
        "optimizer": keras.optimizers.Adam(1e-3),
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    }


def test_it_trains_as_by_its_own_fit(task):
    make_task, x, y = task
    by_keras = make_task()
    by_keras.compile(**train_arguments())
    add_sparse_gradients_up(by_keras.optimizer)
    validation = (x,) if y is None else (x, y)
    options = {"epochs": 2, "validation_data": validation, "batch_size": 4, "verbose": 0}
    expected = by_keras.fit(x, y, **options).history
    trainer = Trainer(make_task(), **train_arguments(), seed=7)
    history = trainer.fit(x, y, **options).history
    assert_same(trainer.model, by_keras, 1e-4)
    assert set(history) >= {"loss", "val_loss"}
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(history[name], expected[name], rtol=1e-3)
    predicted = trainer.predict(x, verbose=0)
    np.testing.assert_allclose(predicted, by_keras.predict(x, verbose=0), 1e-3, 1e-3)
    evaluated = trainer.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(evaluated, by_keras.evaluate(x, y, verbose=0), rtol=1e-3)


def test_it_resumes_to_the_bit_and_steps_one_by_one(task, tmp_path):
    make_task, x, y = task

    def make(name):
        return Trainer(
            make_task(), **train_arguments(), seed=7, checkpoint_dir=tmp_path / name,
            checkpoint_every=1,
        )  # fmt: skip

    options = {"epochs": 2, "batch_size": 4, "verbose": 0}
    whole = make("whole")
    whole.fit(x, y, **options)
    with pytest.raises(KilledError):
        make("cut").fit(x, y, **options, callbacks=[EndAt(6)])
    again = make("cut")
    again.fit(x, y, **options, resume=True)
    assert_same(again.model, whole.model)
    by_steps = Trainer(make_task(), **train_arguments(), seed=7, checkpoint_dir=tmp_path / "steps")
    assert len(list(by_steps.steps(x, y, batch_size=4, epochs=2))) == 8
    assert_same(by_steps.model, whole.model, 1e-6)


def test_it_trains_in_half_precision_by_micro_batches(task):
    make_task, x, y = task
    trainer = Trainer(make_task(), **train_arguments(), fp16_enabled=True, micro_batches=2)
    losses = trainer.fit(x, y, epochs=4, batch_size=8, verbose=0).history["loss"]
    assert np.all(np.isfinite(losses))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["bert, texts", "gpt2, texts"])
def test_a_lora_is_trained_and_merged(name):
    make, has_preprocessor, x, y = TASKS[name]
    model = make(has_preprocessor=has_preprocessor)
    enable_lora(model.backbone, rank=2)
    untuned = model.predict(x, verbose=0)
    trainer = Trainer(model, **train_arguments())
    trainer.fit(x, y, epochs=2, batch_size=4, verbose=0)
    tuned = trainer.predict(x, verbose=0)
    assert np.abs(tuned - untuned).max() > 0
    merge_lora(model.backbone)
    np.testing.assert_allclose(model.predict(x, verbose=0), tuned, 1e-3, 1e-4)


class OwnLoss(keras_hub.models.BertTextClassifier):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        losses = keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True)
        return 2 * keras.ops.mean(losses)


class OwnStep(StepOfItsOwn, keras_hub.models.BertTextClassifier):
    """Makes its step itself."""

    def make_step(self, data):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)

        def compute():
            y_pred = self(x, training=True)
            self.compute_metrics(x, y, y_pred, sample_weight)
            return self.compute_loss(x, y, y_pred, sample_weight)

        states = [*self.non_trainable_variables, *self.metrics_variables]
        loss = apply(self.optimizer, compute, self.trainable_variables, states)
        self._loss_tracker.update_state(loss)
        return self.get_metrics_result()


@pytest.mark.parametrize("kind", [OwnLoss, OwnStep])
@pytest.mark.parametrize("name", ["bert, texts", "bert, ids"])
def test_a_task_with_a_loss_or_a_step_of_its_own_trains_on_the_same_data(kind, name, tmp_path):
    make, has_preprocessor, x, y = TASKS[name]

    def make_task():
        keras.utils.set_random_seed(7)
        task = make(has_preprocessor=has_preprocessor)
        return kind(
            backbone=task.backbone, num_classes=2, preprocessor=task.preprocessor, dropout=0.0
        )

    by_keras = make_task()
    by_keras.compile(**train_arguments())
    options = {"batch_size": 4, "epochs": 2}
    expected = by_keras.fit(x, y, **options, shuffle=False, verbose=0).history["loss"]
    for arguments in ({}, {"fp16_enabled": True}, {"checkpoint_dir": tmp_path}):
        trainer = Trainer(make_task(), **train_arguments(), **arguments)
        losses = trainer.fit(x, y, **options, shuffle=False, verbose=0).history["loss"]
        np.testing.assert_allclose(losses, expected, rtol=2e-3)
    assert len(list(Trainer(make_task(), **train_arguments()).steps(x, y, **options))) == 8
    assert Trainer(make_task(), **train_arguments()).find_learning_rate(x, y, batch_size=4)
