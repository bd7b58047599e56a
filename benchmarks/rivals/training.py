"""Ways to pretrain an encoder of BERT's shape on masked text: the same documents, once each.

Keras's own layers in Keras's `fit` and in ours, the bare compiled step around them, and on torch
Hugging Face's model in its own trainer and in Lightning. All clip by the global norm, update by
AdamW at a constant rate, and drop a tenth.
"""

import gc
from collections.abc import Callable
from typing import Any

import keras
import masked_text
from bert import CLIP, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Shape, build
from masked_text import Documents, read_documents

from keras_deepseek.training import Trainer

BARE, OURS, OURS_PACKED = "bare step", "Trainer, grouped", "Trainer, packed"
KERAS_PADDED, KERAS_PACKED = "Keras fit, padded", "Keras fit, packed"

Run = Callable[[], Any]


def make_rivals(
    num_layers: int, batch_size: int, num_steps: int, precision: str, names: list[str], **sizes: int
) -> tuple[dict[str, Run], dict[str, Any]]:
    """Returns the rivals, each of which goes once through the documents, and facts about them.

    Args:
        num_layers: integer. The layers of the encoder.
        batch_size: integer. The documents of a batch.
        num_steps: integer. The batches.
        precision: `"float32"` or `"bfloat16"`.
        names: list of strings. Which rivals, of those of the backend.
        **sizes: Further sizes of the encoder, by the fields of `Shape`.
    """
    shape = Shape(num_layers, **sizes)
    documents = read_documents(batch_size * num_steps)
    setting = _Setting(shape, documents, batch_size, precision)
    makers: dict[str, Callable[[_Setting], Run]] = {
        OURS: _ours_grouped,
        OURS_PACKED: _ours_packed,
        KERAS_PADDED: _keras_padded,
        KERAS_PACKED: _keras_packed,
        BARE: _bare,
    }
    skipped: dict[str, str] = {}
    if keras.backend.backend() == "torch":
        import training_torch

        makers |= training_torch.MAKERS
        skipped = training_torch.missing()
    rivals = {name: makers[name](setting) for name in names if name not in skipped}
    gc.freeze()  # Or trainers that collect garbage would go through the objects of all the others.
    facts = {
        "tokens": documents.num_tokens,
        "losses": setting.losses,
        "skipped": {name: reason for name, reason in skipped.items() if name in names},
    }
    return rivals, facts


class _Setting:
    """What all rivals share, and where they write down their losses."""

    def __init__(self, shape: Shape, documents: Documents, batch_size: int, precision: str) -> None:
        self.shape = shape
        self.documents = documents
        self.batch_size = batch_size
        self.is_half = precision == "bfloat16"
        self.losses: dict[str, list[float]] = {}

    @property
    def policy(self) -> str:
        return "mixed_bfloat16" if self.is_half else "float32"

    def note(self, name: str, loss: Any) -> None:
        """Writes down the mean loss of a rival's pass."""
        self.losses.setdefault(name, []).append(float(loss))

    @property
    def num_rows(self) -> int:
        """The packed rows of a batch: they hold about as many tokens as its documents."""
        return max(1, round(self.batch_size / 4))


def _optimizer(**options: Any) -> keras.optimizers.Optimizer:
    optimizer = keras.optimizers.AdamW(
        LEARNING_RATE, weight_decay=WEIGHT_DECAY, epsilon=EPSILON, **options
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])  # As the others do.
    return optimizer


def _trainer(setting: _Setting) -> Trainer:
    return Trainer(
        build(setting.shape, has_masked_head=True),
        optimizer=_optimizer(),
        precision="bfloat16" if setting.is_half else None,
        gradient_clip=("global_norm", CLIP),
        tune_malloc=True,
    )


def _ours_grouped(setting: _Setting) -> Run:
    trainer = _trainer(setting)
    data = masked_text.Buckets(setting.documents, setting.batch_size)

    def run() -> None:
        history = trainer.fit(data, verbose=0)
        setting.note(OURS, history.history["loss"][-1])

    return run


def _ours_packed(setting: _Setting) -> Run:
    trainer = _trainer(setting)
    data = masked_text.pack(setting.documents)

    def run() -> None:
        history = trainer.fit(*data, batch_size=setting.num_rows, verbose=0)
        setting.note(OURS_PACKED, history.history["loss"][-1])

    return run


def _keras_padded(setting: _Setting) -> Run:
    data = masked_text.pad(setting.documents)
    return _keras(setting, KERAS_PADDED, data, setting.batch_size, has_masked_head=False)


def _keras_packed(setting: _Setting) -> Run:
    data = masked_text.pack(setting.documents)
    return _keras(setting, KERAS_PACKED, data, setting.num_rows, has_masked_head=True)


def _keras(
    setting: _Setting, name: str, data: Any, batch_size: int, *, has_masked_head: bool
) -> Run:
    model = build(setting.shape, has_masked_head=has_masked_head, dtype=setting.policy)
    model.compile(_optimizer(global_clipnorm=CLIP), model.loss)

    def run() -> None:
        history = model.fit(*data, batch_size=batch_size, verbose=0)
        setting.note(name, history.history["loss"][-1])

    return run


def _bare(setting: _Setting) -> Run:
    """The same packed batches in a plain loop around the compiled step: no `fit`, no logs."""
    from training_bare import make_step

    model = build(setting.shape, has_masked_head=True, dtype=setting.policy)
    optimizer = _optimizer(global_clipnorm=CLIP)
    optimizer.build(model.trainable_variables)
    x, y = masked_text.pack(setting.documents)
    starts = range(0, len(y), setting.num_rows)
    cuts = [slice(start, start + setting.num_rows) for start in starts]
    batches = [({name: array[cut] for name, array in x.items()}, y[cut]) for cut in cuts]
    step = make_step(model, optimizer)

    def run() -> None:
        losses = [step(*batch) for batch in batches]
        setting.note(BARE, sum(map(float, losses)) / len(losses))

    return run
