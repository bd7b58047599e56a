"""The tokenizer and the generation config of a preset folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from keras_deepseek.chat import find_chat_style
from keras_deepseek.errors import CheckpointError
from keras_deepseek.models.checkpoints.preset_folder import GENERATION_CONFIG_NAME, read_json
from keras_deepseek.models.tokenizers.tokenizer import Tokenizer, is_installed
from keras_deepseek.models.tokenizers.tokenizer_files import TOKENIZER_NAME, read_tokenizer_files


@dataclass(frozen=True)
class PresetAssets:
    """The contents of a preset's tokenizer files and `generation_config.json`.

    Args:
        tokenizer_files: The content of the tokenizer's files by name, kept to be written again.
        tokenizer: `None` if there is no `tokenizer.json`, as in older models with a `vocab.txt`, or
            if `tokenizers` is not installed.
        generation_config: `None` if there is no such file.
    """

    tokenizer_files: Mapping[str, bytes]
    tokenizer: Tokenizer | None
    generation_config: Mapping[str, Any] | None


def read_assets(folder: Path, model_type: object = None) -> PresetAssets:
    """Reads the tokenizer files and the generation config of a preset folder."""
    files = MappingProxyType(read_tokenizer_files(folder))
    tokenizer = None
    if TOKENIZER_NAME in files and is_installed():
        tokenizer = Tokenizer(files, chat_style=find_chat_style(model_type))
    generation_config = None
    if (folder / GENERATION_CONFIG_NAME).exists():
        generation_config = MappingProxyType(read_json(folder, GENERATION_CONFIG_NAME))
        _check_end_tokens(folder / GENERATION_CONFIG_NAME, generation_config.get("eos_token_id"))
    return PresetAssets(files, tokenizer, generation_config)


def _check_end_tokens(path: Path, received: Any) -> None:
    tokens = received if isinstance(received, list) else [received]
    if received is not None and not all(type(token) is int and token >= 0 for token in tokens):
        raise CheckpointError(
            f"`eos_token_id` in {str(path)!r} must be a token id or a list of token ids, from 0 "
            f"on; received {received!r}. Correct the file, or take the key out of it."
        )
