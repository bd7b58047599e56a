"""Hugging Face's BERT in its own trainer and in Lightning, as people run it on a CPU."""

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

from masked_text import Documents, pad

HF, GROUPED, COMPILED = "HF Trainer", "HF, grouped", "HF, grouped, compiled"
LIGHTNING = "Lightning"


def missing() -> dict[str, str]:
    """Returns which rivals can't run here, and why."""
    needs = {
        HF: ("transformers", "accelerate"),
        GROUPED: ("transformers", "accelerate"),
        COMPILED: ("transformers", "accelerate"),
        LIGHTNING: ("transformers", "lightning"),
    }
    found = {
        rival: [name for name in names if not importlib.util.find_spec(name)]
        for rival, names in needs.items()
    }
    return {
        rival: f"{' and '.join(names)} not installed" for rival, names in found.items() if names
    }


def _model(setting: Any) -> Any:
    import transformers

    shape = setting.shape
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


def _hugging_face(name: str, **options: Any) -> Callable[[Any], Callable[[], Any]]:
    def make(setting: Any) -> Callable[[], Any]:
        import transformers
        from training import CLIP, LEARNING_RATE, WEIGHT_DECAY

        transformers.logging.set_verbosity_error()
        folder = tempfile.TemporaryDirectory()
        trainer = transformers.Trainer(
            _model(setting),
            transformers.TrainingArguments(
                folder.name,
                per_device_train_batch_size=setting.batch_size,
                num_train_epochs=1,
                learning_rate=LEARNING_RATE,
                weight_decay=WEIGHT_DECAY,
                max_grad_norm=CLIP,
                lr_scheduler_type="constant",
                bf16=setting.is_half,
                use_cpu=True,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                logging_strategy="no",
                **options,
            ),
            data_collator=_collate,
            train_dataset=_rows(setting.documents),
        )

        def run() -> None:
            assert folder.name  # It lives as long as the trainer.
            setting.note(name, trainer.train().training_loss)

        return run

    return make


def _lightning(setting: Any) -> Callable[[], Any]:
    import lightning
    import torch
    from training import CLIP, LEARNING_RATE, WEIGHT_DECAY

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = _model(setting).train()
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
    GROUPED: _hugging_face(GROUPED, train_sampling_strategy="group_by_length"),
    COMPILED: _hugging_face(
        COMPILED, train_sampling_strategy="group_by_length", torch_compile=True
    ),
    LIGHTNING: _lightning,
}
