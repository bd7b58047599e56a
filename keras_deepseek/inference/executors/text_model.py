"""Language models of this package and of KerasHub: presets, and live `CausalLM`s.

Beside `keras_model`, this is the only module of `inference` that needs Keras.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_deepseek import backend
from keras_deepseek.errors import InvalidInputError, MissingExtraError, NotSupportedError
from keras_deepseek.inference.process_limits import find_memory
from keras_deepseek.models import CausalLM, Tokenizer
from keras_deepseek.models.checkpoints.preset_folder import (
    CONFIG_NAME,
    find_keras_hub_class,
    read_json,
)
from keras_deepseek.models.checkpoints.preset_model import QUANTIZATIONS
from keras_deepseek.models.generation.keras_hub_rows import KerasHubRows
from keras_deepseek.models.generation.prompts import find_end_tokens
from keras_deepseek.models.generation.row_steps import RowSteps
from keras_deepseek.models.tokenizers.keras_hub_tokenizer import KerasHubTokenizer
from keras_deepseek.models.tokenizers.tokenizer import is_installed
from keras_deepseek.models.tokenizers.tokenizer_files import read_chat_templates

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextModel:
    """A language model as a `TextEngine` runs it.

    Args:
        steps: The compiled steps. They are the engine's `RowModel`.
        tokenizer: The tokenizer, with the chat template.
        end_tokens: The tokens by which the model ends a text.
        has_chat: True if it can format a conversation.
        chat_style: The message format of its conversations. `None`: it has a chat template.
        chunk_size: The most tokens of a prompt that a step reads. `None`: a step reads all.
        default_length: The most tokens of a prompt and its answer, unless the user sets them.
            `None`: those that the model takes.
    """

    steps: RowSteps
    tokenizer: Tokenizer | KerasHubTokenizer
    end_tokens: frozenset[int]
    has_chat: bool
    chat_style: str | None
    chunk_size: int | None
    default_length: int | None = None

    def check_cache(self, rows: int, slots: int) -> None:
        """Raises an error, before anything is made, if the device has no memory for a cache."""
        device = backend.current().devices.read_device_memory()
        memory = find_memory() if device is None else device.get("limit")
        needed = self.steps.count_bytes(rows, slots)
        if memory is not None and needed > memory:
            raise InvalidInputError(
                f"The cache for {rows} answers of {slots} tokens takes {needed / 2**30:,.1f} GiB, "
                f"and there are {memory / 2**30:,.1f}. Lower `max_length` (--max-length), or "
                "`max_batch_size` (--max-batch-size)."
            )


def open_text_model(
    model: Any,
    *,
    chunk_size: int,
    batch_invariant: bool,
    threads: int | None,
    weights: str | None = None,
) -> TextModel:
    """Opens a language model. Nothing is compiled yet.

    Args:
        model: The path of a preset, or a live `CausalLM`, ours or KerasHub's.
        chunk_size: The most tokens of a prompt that a step reads.
        batch_invariant: True if an answer's bits must not depend on the other answers.
        threads: The CPU threads of the process, or `None`.
        weights: The kind of numbers to read the weights of a preset as; `None` is the global dtype.

    Raises:
        InvalidInputError: There is no such preset, it is of another model, or has no tokenizer; or
            `weights` is given for a model that is not read here.
        CheckpointError: A file of the preset is damaged.
        NotSupportedError: KerasHub's model can't be served for texts.
    """
    if threads is not None:  # TensorFlow's can't be changed once it has variables.
        backend.current().devices.limit_threads(threads)
    path = Path(model) if isinstance(model, str | os.PathLike) else None
    if path is not None:
        is_of_keras_hub = find_keras_hub_class(read_json(path, CONFIG_NAME)) is not None
        if not is_of_keras_hub:
            kind: dict[str, Any] = {
                "quantization" if weights in QUANTIZATIONS else "dtype": weights
            }
            model, weights = CausalLM.from_preset(path, **kind), None
        else:
            model = _read_task(path) if weights is None else path
    if weights is not None:
        raise InvalidInputError(
            f"Received weights={weights!r} for a live model or one of KerasHub. Only the folder of "
            "a language model of this package is quantized while it is loaded: remove it."
        )
    if not isinstance(model, CausalLM):
        return _open_task(model, batch_invariant=batch_invariant)
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise _no_tokenizer(path if path is None else str(path))
    if not isinstance(tokenizer, Tokenizer):
        raise InvalidInputError(
            "The `tokenizer` of a served language model must be a "
            f"keras_deepseek.models.Tokenizer; received {tokenizer!r:.100}."
        )
    has_template = bool(read_chat_templates(tokenizer.files))
    if has_template:
        _try_template(tokenizer)
    # A template of the checkpoint comes before the family's format, as in `Tokenizer`.
    chat_style = None if has_template else tokenizer.chat_style
    return TextModel(
        steps=RowSteps(model, chunk_size=chunk_size, batch_invariant=batch_invariant),
        tokenizer=tokenizer,
        end_tokens=find_end_tokens(model),
        has_chat=chat_style is not None or has_template,
        chat_style=chat_style,
        chunk_size=chunk_size,
    )


def _try_template(tokenizer: Tokenizer) -> None:
    """Warns of a template that fails before a user meets it. Some refuse certain conversations."""
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}])
    except InvalidInputError as error:
        _logger.warning("The chat template refuses a message of a user: %s", error)


def _read_task(path: Path) -> Any:
    """Returns the language model that KerasHub's `save_to_preset` wrote."""
    folder = str(path.absolute())  # A bare name might be one of KerasHub's own presets.
    try:
        import keras_hub
    except ImportError as error:
        raise NotSupportedError(
            f"{str(path)!r} is a preset of KerasHub, which can't be imported: {error}. "
            "Install it with: pip install keras-hub"
        ) from error
    try:
        return keras_hub.models.CausalLM.from_preset(folder)
    except Exception as error:  # Keras raises several kinds for a file that is damaged.
        line = str(error).strip().partition("\n")[0]  # The others show a whole config.
        raise InvalidInputError(
            f"KerasHub can't read a language model from {str(path)!r}: {line}"
        ) from error


def _open_task(task: Any, *, batch_invariant: bool) -> TextModel:
    import keras_hub

    name = type(task).__name__
    if isinstance(task, keras_hub.models.Seq2SeqLM):
        raise NotSupportedError(
            f"{name} has an encoder, and only models that go on with a prompt are served for texts."
        )
    if batch_invariant:
        raise NotSupportedError(
            f"`batch_invariant` (--batch-invariant) holds for models of this package alone, and "
            f"{name} is one of KerasHub. Remove it."
        )
    steps, tokenizer = KerasHubRows(task), KerasHubTokenizer(task)
    return TextModel(
        steps=steps,
        tokenizer=tokenizer,
        end_tokens=frozenset(tokenizer.stop_token_ids),
        has_chat=False,
        chat_style=None,
        chunk_size=None,
        default_length=task.preprocessor.sequence_length,
    )


def _no_tokenizer(path: str | None) -> Exception:
    if path is not None and not is_installed():
        return MissingExtraError("tokenizers", "text", f"to serve the language model {path!r}")
    if path is not None:
        return InvalidInputError(
            f"The language model {path!r} has no `tokenizer.json`, which texts need. Add the files "
            "of its tokenizer, as `save_pretrained` of `transformers` writes them."
        )
    return InvalidInputError(
        "The `tokenizer` of the language model is None, and texts need one. Set `model.tokenizer = "
        "Tokenizer.from_preset(folder)`; or, to serve its logits to clients that send token ids, "
        "serve keras.Model(model.inputs, model.outputs)."
    )
