"""Language models of this package: presets, and live `CausalLM`s.

Beside `keras_model`, this is the only module of `inference` that needs Keras.
"""

import os
from dataclasses import dataclass
from typing import Any

from keras_deepseek import backend
from keras_deepseek.errors import InvalidInputError, MissingExtraError
from keras_deepseek.models import CausalLM, Tokenizer
from keras_deepseek.models.generation.prompts import find_end_tokens
from keras_deepseek.models.generation.row_steps import RowSteps
from keras_deepseek.models.tokenizers.tokenizer import is_installed
from keras_deepseek.models.tokenizers.tokenizer_files import read_chat_templates


@dataclass(frozen=True)
class TextModel:
    """A language model as a `TextEngine` runs it.

    Args:
        steps: The compiled steps. They are the engine's `RowModel`.
        tokenizer: The tokenizer, with the chat template.
        end_tokens: The tokens by which the model ends a text.
        has_chat: True if it can format a conversation.
        chat_style: The message format of its conversations. `None`: it has a chat template.
    """

    steps: RowSteps
    tokenizer: Tokenizer
    end_tokens: frozenset[int]
    has_chat: bool
    chat_style: str | None


def open_text_model(
    model: Any, *, chunk_size: int, batch_invariant: bool, threads: int | None
) -> TextModel:
    """Opens a language model. Nothing is compiled yet.

    Args:
        model: The path of a preset, or a live `CausalLM`.
        chunk_size: The most tokens of a prompt that a step reads.
        batch_invariant: True if an answer's bits must not depend on the other answers.
        threads: The CPU threads of the process, or `None`.

    Raises:
        InvalidInputError: There is no such preset, it is of another model, or has no tokenizer.
        CheckpointError: A file of the preset is damaged.
    """
    if threads is not None:  # TensorFlow's can't be changed once it has variables.
        backend.current().devices.limit_threads(threads)
    is_path = isinstance(model, str | os.PathLike)
    loaded = CausalLM.from_preset(model) if is_path else model
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        raise _no_tokenizer(os.fspath(model) if is_path else None)
    if not isinstance(tokenizer, Tokenizer):
        raise InvalidInputError(
            "The `tokenizer` of a served language model must be a "
            f"keras_deepseek.models.Tokenizer; received {tokenizer!r:.100}."
        )
    has_template = bool(read_chat_templates(tokenizer.files))
    # A template of the checkpoint comes before the family's format, as in `Tokenizer`.
    chat_style = None if has_template else tokenizer.chat_style
    return TextModel(
        steps=RowSteps(loaded, chunk_size=chunk_size, batch_invariant=batch_invariant),
        tokenizer=tokenizer,
        end_tokens=find_end_tokens(loaded),
        has_chat=chat_style is not None or has_template,
        chat_style=chat_style,
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
