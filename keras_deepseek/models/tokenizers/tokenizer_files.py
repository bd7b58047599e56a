"""Reading of the tokenizer files of a checkpoint, without any other package."""

import fnmatch
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_deepseek.artifacts.lfs_pointer import check_not_pointer
from keras_deepseek.errors import (
    CheckpointError,
    InvalidInputError,
    unknown_name_message,
)

TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
CHAT_TEMPLATE_NAME = "chat_template.jinja"
TOKENIZER_FILES = (
    TOKENIZER_NAME,
    TOKENIZER_CONFIG_NAME,
    CHAT_TEMPLATE_NAME,
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
)
"""The possible file names. Those before `special_tokens_map.json` are used here."""


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Returns the contents of a checkpoint's tokenizer files by name; `{}` if it has none."""
    contents = {}
    for path in sorted(folder.iterdir()):
        if any(fnmatch.fnmatch(path.name, name) for name in TOKENIZER_FILES) and path.is_file():
            try:
                contents[path.name] = path.read_bytes()
            except OSError as error:
                raise CheckpointError(f"{str(path)!r} can't be read: {error.strerror}.") from error
            check_not_pointer(path, contents[path.name])
    return contents


def read_json_file(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """Returns the dict in one of the tokenizer files; an empty dict if the file is missing."""
    try:
        content = json.loads(files.get(name, b"{}").decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"The file {name!r} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"The file {name!r} must hold a JSON object.")
    return content


def read_special_tokens(files: Mapping[str, bytes]) -> dict[str, str]:
    """Returns the special tokens by role, as in `{"eos_token": "</s>"}`."""
    roles = {
        **read_json_file(files, "special_tokens_map.json"),
        **read_json_file(files, TOKENIZER_CONFIG_NAME),
    }
    tokens = {}
    for name, value in roles.items():
        token = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(token, str):
            tokens[name] = token
    return tokens


def read_chat_templates(files: Mapping[str, bytes]) -> dict[str, str]:
    """Returns the chat templates by name; the dict is empty if the checkpoint has none."""
    if CHAT_TEMPLATE_NAME in files:
        return {"default": files[CHAT_TEMPLATE_NAME].decode("utf-8", "replace")}
    for file in ("chat_template.json", TOKENIZER_CONFIG_NAME):
        templates = read_json_file(files, file).get("chat_template")
        if templates:
            return (
                {"default": templates}
                if isinstance(templates, str)
                else _named_templates(file, templates)
            )
    return {}


def _named_templates(file: str, received: Any) -> dict[str, str]:
    templates = received if isinstance(received, list) else [received]
    for entry in templates:
        parts = [entry.get("name"), entry.get("template")] if isinstance(entry, dict) else [None]
        if not all(isinstance(part, str) for part in parts):
            raise CheckpointError(
                f'`chat_template` in {file!r} must be a string, or a list as in [{{"name": '
                f'"default", "template": "..."}}]; received {entry!r}. Correct the file, or remove '
                "the key."
            )
    return {entry["name"]: entry["template"] for entry in templates}


def find_chat_template(templates: Mapping[str, str], name: str) -> str:
    """Returns the chat template of a given name; raises an error if there is none."""
    if not templates:
        raise InvalidInputError(
            "The checkpoint has no chat template. Write the prompt in the format of its training."
        )
    if name not in templates:
        raise InvalidInputError(unknown_name_message("chat template", name, templates))
    return templates[name]


def count_vocabulary(files: Mapping[str, bytes]) -> int | None:
    """Returns the vocabulary size, the largest token id plus one; `None` without a tokenizer."""
    if TOKENIZER_NAME not in files:
        return None
    content = read_json_file(files, TOKENIZER_NAME)
    try:
        vocabulary = content["model"]["vocab"]  # Tokens to ids, or pairs of tokens and scores.
        is_dict = isinstance(vocabulary, dict)
        ids = [*vocabulary.values()] if is_dict else [len(vocabulary) - 1]
        ids += [token["id"] for token in content.get("added_tokens") or ()]
        return max((int(token_id) for token_id in ids), default=-1) + 1
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"The file {TOKENIZER_NAME!r} has no vocabulary.") from error


def check_vocabulary(files: Mapping[str, bytes], vocabulary_size: int) -> None:
    """Raises an error if a tokenizer has token ids beyond the model's vocabulary size.

    The vocabulary of the model may be larger.
    """
    count = count_vocabulary(files)
    if count is not None and count > vocabulary_size:
        raise InvalidInputError(
            f"The tokenizer has token ids up to {count - 1}, and the model has embeddings for only "
            f"{vocabulary_size} tokens. Use the tokenizer of this model, or one with ids below "
            f"{vocabulary_size}."
        )


_BYTE_CHARACTERS = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
"""The bytes that byte-level tokens spell as themselves. The others are characters from 256 on."""

_KEEPS_TEXT = ("ByteLevel", "Digits", "Split")
"""The pre-tokenizers that drop nothing, unless a split removes what it finds."""


def find_most_bytes_per_token(content: Mapping[str, Any]) -> int | None:
    """Returns the most UTF-8 bytes of a text that one token stands for.

    It is known for byte-level tokens of all bytes, where nothing changes or drops a part of a text
    before. Else returns `None`.

    Args:
        content: What `tokenizer.json` holds.
    """
    num_others = 256 - len(_BYTE_CHARACTERS)
    alphabet = [chr(code) for code in (*_BYTE_CHARACTERS, *range(256, 256 + num_others))]
    model, added = content["model"], content.get("added_tokens") or ()
    pre_tokenizers = list(_list_steps(content.get("pre_tokenizer"), "pretokenizers"))
    is_whole = (
        model.get("type") == "BPE"
        and all(character in model["vocab"] for character in alphabet)
        and not any(True for _ in _list_steps(content.get("normalizer"), "normalizers"))
        and any(step["type"] == "ByteLevel" for step in pre_tokenizers)
        and all(
            step["type"] in _KEEPS_TEXT and step.get("behavior") != "Removed"
            for step in pre_tokenizers
        )
        # Such a token takes all spaces beside it.
        and not any(token.get("lstrip") or token.get("rstrip") for token in added)
    )
    if not is_whole:
        return None
    return max(*map(len, model["vocab"]), *(len(token["content"].encode()) for token in added), 1)


def _list_steps(step: Any, name: str) -> Iterator[dict[str, Any]]:
    """Yields the steps of a normalizer or a pre-tokenizer without the sequences around them."""
    if step is not None and step["type"] == "Sequence":
        for inner in step[name]:
            yield from _list_steps(inner, name)
    elif step is not None:
        yield step
