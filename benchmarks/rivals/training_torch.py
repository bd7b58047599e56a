"""Hugging Face's BERT in its own trainer and in Lightning, as people run it on a CPU."""

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

from bert import CLIP, LEARNING_RATE, WEIGHT_DECAY, Shape
from masked_text import Documents, pad

from keras_deepseek.training.fit.tune_malloc import tune_malloc

HF, GROUPED, COMPILED = "HF Trainer", "HF, grouped", "HF, grouped, compiled"
KEPT, LIGHTNING = "HF, compiled, kept memory", "Lightning"


def missing() -> dict[str, str]:
    """Returns which rivals can't run here, and why."""
    needs = {
        HF: ("transformers", "accelerate"),
        GROUPED: ("transformers", "accelerate"),
        COMPILED: ("transformers", "accelerate"),
        KEPT: ("transformers", "accelerate"),
        LIGHTNING: ("transformers", "lightning"),
    }
    missing_names = {
        rival: [name for name in names if not importlib.util.find_spec(name)]
        for rival, names in needs.items()
    }
    return {
        rival: f"{' and '.join(names)} not installed"
        for rival, names in missing_names.items()
        if names
    }


def _model(shape: Shape) -> Any:
    import transformers

    return transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=shape.vocabulary_size,
            hidden_size=shape.hidden_dim,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            intermediate_size=shape.intermediate_dim,
            max_position_embeddings=shape.longest,
            hidden_dropout_prob=shape.dropout,
            attention_probs_dropout_prob=shape.dropout,
        )
    )


def _rows(documents: Documents) -> list[dict[str, Any]]:
    return [
        {"input_ids": ids, "labels": targets}
        for ids, targets in zip(documents.token_ids, documents.targets, strict=True)
    ]


def _collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a batch that is padded to its longest document."""
    import torch

    documents = Documents([row["input_ids"] for row in rows], [row["labels"] for row in rows])
    x, targets = pad(documents, None)
    return {
        "input_ids": torch.from_numpy(x["token_ids"]).long(),
        "attention_mask": torch.from_numpy(x["segment_ids"]).long(),
        "labels": torch.from_numpy(targets).long(),
    }


def _trainer(
    model: Any,
    documents: Documents,
    folder: str,
    *,
    batch_size: int,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    is_half: bool,
    **options: Any,
) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=batch_size,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            max_grad_norm=CLIP,
            lr_scheduler_type="constant",
            bf16=is_half,
            use_cpu=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            **options,
        ),
        data_collator=_collate,
        train_dataset=_rows(documents),
    )


def _group(trainer: Any, documents: Documents) -> None:
    """Makes a trainer group by length as it does in a large corpus: in portions of 50 batches.

    Of few documents it would take a quarter, and group next to nothing.
    """
    from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices

    class Sampler(LengthGroupedSampler):
        def __iter__(self) -> Iterator[int]:
            indices = get_length_grouped_indices(self.lengths, self.batch_size, mega_batch_mult=50)
            return iter(indices)

    lengths = [len(ids) for ids in documents.token_ids]
    sampler = Sampler(trainer.args.train_batch_size, lengths=lengths)
    trainer._get_train_sampler = lambda *_: sampler  # noqa: SLF001 - no public way.


def _hugging_face(
    name: str, *, is_grouped: bool = False, tunes_malloc: bool = False, **options: Any
) -> Callable[[Any], Callable[[], Any]]:
    def make(setting: Any) -> Callable[[], Any]:
        from transformers.trainer_callback import PrinterCallback

        folder = tempfile.TemporaryDirectory()
        trainer = _trainer(
            _model(setting.shape),
            setting.documents,
            folder.name,
            batch_size=setting.batch_size,
            epochs=1,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            is_half=setting.is_half,
            **options,
        )
        trainer.remove_callback(PrinterCallback)
        if is_grouped:
            _group(trainer, setting.documents)

        def run() -> None:
            assert folder.name  # It lives as long as the trainer.
            with tune_malloc() if tunes_malloc else nullcontext():
                setting.note(name, trainer.train().training_loss)

        return run

    return make


def train_hugging_face(
    shape: Shape,
    training_documents: Documents,
    unseen: Documents,
    *,
    batch_size: int,
    epochs: int,
    learning_rate: float,
    seed: int,
) -> list[float]:
    """Returns the mean loss of masked tokens in unseen documents after each epoch.

    Args:
        shape: `Shape` of the model.
        training_documents: `Documents` to train on, grouped by length.
        unseen: `Documents` to evaluate with.
        batch_size: integer. Documents of a batch.
        epochs: integer.
        learning_rate: float.
        seed: integer. What the weights and the order are drawn by.
    """
    import torch
    import transformers

    transformers.set_seed(seed)
    model, losses = _model(shape), []
    batch = _collate(_rows(unseen))

    class Watch(transformers.TrainerCallback):
        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            model.eval()
            with torch.no_grad():
                losses.append(float(model(**batch).loss))
            model.train()

    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(
            model,
            training_documents,
            folder,
            batch_size=batch_size,
            epochs=epochs,
            learning_rate=learning_rate,
            weight_decay=0.0,
            is_half=True,
            train_sampling_strategy="group_by_length",
            seed=seed,
        )
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        trainer.add_callback(Watch())
        trainer.train()
    return losses


def _lightning(setting: Any) -> Callable[[], Any]:
    import lightning
    import torch

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = _model(setting.shape).train()
            self.losses: list[Any] = []

        def training_step(self, batch: Any, index: int) -> Any:
            loss = self.model(**batch).loss
            self.losses.append(loss.detach())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(
                self.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
            )

        def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            # Lightning's own clip refuses a fused update.
            torch.nn.utils.clip_grad_norm_(self.parameters(), CLIP)

    loader = torch.utils.data.DataLoader(
        _rows(setting.documents), setting.batch_size, shuffle=True, collate_fn=_collate
    )
    module = Module()

    def run() -> None:
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            precision="bf16-mixed" if setting.is_half else "32-true",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module.losses.clear()
        trainer.fit(module, loader)
        setting.note(LIGHTNING, sum(map(float, module.losses)) / len(module.losses))

    return run


MAKERS = {
    HF: _hugging_face(HF),
    GROUPED: _hugging_face(GROUPED, is_grouped=True),
    COMPILED: _hugging_face(COMPILED, is_grouped=True, torch_compile=True),
    KEPT: _hugging_face(KEPT, is_grouped=True, torch_compile=True, tunes_malloc=True),
    LIGHTNING: _lightning,
}
