"""The tokenizer of a checkpoint, a wrapper of the `tokenizers` library."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, Self, overload

import numpy as np

from keras_deepseek.artifacts.signature import Array
from keras_deepseek.chat import encode_chat
from keras_deepseek.checks import check_integer
from keras_deepseek.errors import (
    CheckpointError,
    InvalidInputError,
    MissingExtraError,
    unknown_name_message,
)
from keras_deepseek.models.tokenizers.chat_template import Message, render_chat
from keras_deepseek.models.tokenizers.stream_decoder import StreamDecoder
from keras_deepseek.models.tokenizers.token_rows import NUM_TOKEN_IDS, read_rows, read_token_id
from keras_deepseek.models.tokenizers.tokenizer_files import (
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    find_chat_template,
    find_most_bytes_per_token,
    read_chat_templates,
    read_json_file,
    read_special_tokens,
    read_tokenizer_files,
)

Text = str | Sequence[str]


def is_installed() -> bool:
    """Returns true if the `tokenizers` library is installed."""
    return importlib.util.find_spec("tokenizers") is not None


class Tokenizer:
    """A tokenizer from text to the padded arrays that a language model takes, and back.

    Choose it to prepare text for a language model of this package. It reads `tokenizer.json` and
    `tokenizer_config.json` in the Hugging Face format, and uses the `tokenizers` library (`pip
    install 'keras_deepseek[text]'`).

    Args:
        files: dict of bytes by name. The files of the tokenizer, including `"tokenizer.json"`.
        chat_style: string or `None`. The message format for a checkpoint without a chat template,
            `"v3.2"`, `"v4"` or `"v4.1"`. `from_preset` takes that of the model's family. Defaults
            to `None`.

    Call arguments:
        texts: string or list of strings.
        sequence_length: integer or `None`. The length of each row. Longer rows are cut at the end,
            or at the start if padding is on the left. `None` takes the longest. Defaults to `None`.
        padding_side: `"right"` for training or `"left"` for generation. Defaults to `"right"`.
        add_special_tokens: boolean. Whether to add the start and end tokens that `tokenizer.json`
            asks for. `add_bos_token` in `tokenizer_config.json` is ignored, as in `transformers` 5.
            Defaults to `True`.

    Returns:
        A dict of `"token_ids"`, int32 of shape `(batch_size, sequence_length)`, and
        `"padding_mask"`, int32 of the same shape, 1 for tokens and 0 for padding.

    Raises:
        InvalidInputError: There is no `tokenizer.json`, or the texts are not strings.
        CheckpointError: A file is damaged.
        MissingExtraError: `tokenizers` is not installed.

    Example:

    >>> tokenizer = Tokenizer.from_preset("DeepSeek-V2-Lite")  # doctest: +SKIP
    >>> chat = [{"role": "user", "content": "Hello"}]
    >>> prompt = tokenizer.apply_chat_template(chat)  # doctest: +SKIP
    >>> tokenizer([prompt], padding_side="left", add_special_tokens=False)  # doctest: +SKIP
    """

    def __init__(self, files: Mapping[str, bytes], *, chat_style: str | None = None) -> None:
        if not isinstance(files, Mapping):
            raise InvalidInputError(
                f"`files` must be a dict of bytes by name, received {files!r}. For a folder use "
                "Tokenizer.from_preset(folder)."
            )
        if TOKENIZER_NAME not in files:
            raise InvalidInputError(
                f"The files {sorted(files)} lack {TOKENIZER_NAME!r}. Write it with the "
                "tokenizer's `save_pretrained` in `transformers`."
            )
        try:
            import tokenizers
        except ImportError as error:
            raise MissingExtraError("tokenizers", "text", "to tokenize text") from error
        self.chat_style = chat_style
        self.files: Mapping[str, bytes] = MappingProxyType(dict(files))
        self.config = read_json_file(files, TOKENIZER_CONFIG_NAME)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_buffer(files[TOKENIZER_NAME])
        except Exception as error:  # The library raises plain `Exception`s.
            raise CheckpointError(f"The file {TOKENIZER_NAME!r} is damaged: {error}.") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.special_token_ids: dict[str, int] = {}
        for name, token in read_special_tokens(files).items():
            token_id = self._tokenizer.token_to_id(token)
            if token_id is not None:
                self.special_token_ids[name] = token_id

    @classmethod
    def from_preset(cls, preset: str | os.PathLike[str]) -> Self:
        """Reads the tokenizer of a preset.

        Args:
            preset: A folder, or a repository on the Hugging Face hub, as in `"hf://org/name"`.

        Raises:
            InvalidInputError: There is no such preset, or it has no tokenizer.
        """
        # The package of checkpoints imports that of tokenizers.
        from keras_deepseek.models.checkpoints.preset_folder import find_preset, read_chat_style

        folder = find_preset(preset)
        return cls(read_tokenizer_files(folder), chat_style=read_chat_style(folder))

    def __call__(
        self,
        texts: Text,
        *,
        sequence_length: int | None = None,
        padding_side: Literal["left", "right"] = "right",
        add_special_tokens: bool = True,
    ) -> dict[str, Array]:
        _check_padding_side(padding_side)
        texts = [texts] if isinstance(texts, str) else texts
        rows = self.tokenize(texts, add_special_tokens=add_special_tokens)
        return self.pad(rows, sequence_length=sequence_length, padding_side=padding_side)

    def pad(
        self,
        rows: Sequence[Sequence[int]],
        *,
        sequence_length: int | None = None,
        padding_side: Literal["left", "right"] = "right",
    ) -> dict[str, Array]:
        """Pads rows of token ids to the arrays that a call returns.

        Args:
            rows: lists of integers.
            sequence_length: integer or `None`. As for a call. Defaults to `None`.
            padding_side: `"right"` or `"left"`. Defaults to `"right"`.

        Raises:
            InvalidInputError: A row is not a list of integers, or has one of more than 32 bits.
        """
        _check_padding_side(padding_side)
        ids = read_rows(rows)
        if sequence_length is None:
            sequence_length = max(map(len, ids), default=0)
        sequence_length = check_integer("sequence_length", sequence_length, minimum=0)
        token_ids = np.full((len(ids), sequence_length), self.pad_token_id, "int32")
        padding_mask = np.zeros_like(token_ids)
        for number, row in enumerate(ids):
            length = min(len(row), sequence_length)
            if padding_side == "left":
                part, clipped = slice(sequence_length - length, None), row[len(row) - length :]
            else:
                part, clipped = slice(0, length), row[:length]
            token_ids[number, part] = clipped
            padding_mask[number, part] = 1
        return {"token_ids": token_ids, "padding_mask": padding_mask}

    @overload
    def tokenize(  # type: ignore[overload-overlap] # A string is a sequence of strings.
        self, texts: str, *, add_special_tokens: bool = True
    ) -> list[int]: ...

    @overload
    def tokenize(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]: ...

    def tokenize(
        self, texts: Text, *, add_special_tokens: bool = True
    ) -> list[int] | list[list[int]]:
        """Returns the token ids of a text, or of each text in a list.

        Args:
            texts: string or list of strings.
            add_special_tokens: boolean. Whether to add tokens such as the start token. Defaults to
                `True`.
        """
        if isinstance(texts, str):
            return self.tokenize([texts], add_special_tokens=add_special_tokens)[0]
        if not np.iterable(texts) or isinstance(texts, bytes | Mapping):
            raise InvalidInputError(
                f"Texts must be a string or a list of strings, received {texts!r}."
            )
        texts = list(texts)
        for text in texts:
            if not isinstance(text, str):
                raise InvalidInputError(f"A text must be a string, received {text!r}.")
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        return [list(encoding.ids) for encoding in encoded]

    def detokenize(self, token_ids: Any, *, skip_special_tokens: bool = True) -> Any:
        """Returns the text of token ids, or a list of texts for several rows.

        Args:
            token_ids: list or array of integers, with one or two axes.
            skip_special_tokens: boolean. Whether to leave special tokens out of the text. Defaults
                to `True`.

        Raises:
            InvalidInputError: A token id is negative or not an integer.
        """
        if not np.iterable(token_ids) or isinstance(token_ids, str | bytes | Mapping):
            raise InvalidInputError(
                "Token ids must be a list or an array of integers with one or two axes, received "
                f"{token_ids!r}."
            )
        ids = list(token_ids)
        if ids and np.ndim(ids[0]):
            return [self.detokenize(row, skip_special_tokens=skip_special_tokens) for row in ids]
        ids = [read_token_id(token_id) for token_id in ids]
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def stream(self, *, skip_special_tokens: bool = True) -> StreamDecoder:
        """Returns a decoder for tokens that arrive one at a time.

        Args:
            skip_special_tokens: boolean. As for `detokenize`. Defaults to `True`.
        """
        return StreamDecoder(
            lambda ids: self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        )

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        template: str = "default",
        **variables: Any,
    ) -> str:
        """Formats a conversation with the chat template of the checkpoint.

        A checkpoint without one is formatted by `keras_deepseek.chat.encode_chat`, if the family
        has a message format, as DeepSeek-V3.2 and V4 have. The text contains its special tokens, so
        tokenize it with `add_special_tokens=False`.

        Args:
            messages: list of dicts, as in `{"role": "user", "content": "Hello"}`.
            add_generation_prompt: boolean. Whether to add the start of an answer. Defaults to
                `True`.
            template: string. The name of the template, if the checkpoint has several. Defaults to
                `"default"`.
            **variables: Further variables of the template, or arguments of `encode_chat`, such as
                `tools` and `thinking`.

        Raises:
            InvalidInputError: There is no such template, or it refuses the messages.
            MissingExtraError: jinja2 is not installed.

        Returns:
            A string.
        """
        if self.chat_style is not None and not self._chat_templates:
            if template != "default":
                raise InvalidInputError(
                    unknown_name_message("chat template", template, ["default"])
                )
            return encode_chat(
                messages,
                style=self.chat_style,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
        text = find_chat_template(self._chat_templates, template)
        tokens = {
            name: self.id_to_token(token_id) for name, token_id in self.special_token_ids.items()
        }
        return render_chat(
            text,
            messages,
            **{"add_generation_prompt": add_generation_prompt, **tokens, **variables},
        )

    @cached_property
    def _chat_templates(self) -> dict[str, str]:
        return read_chat_templates(self.files)

    def token_to_id(self, token: str) -> int | None:
        """Returns the id of a token, or `None` if there is no such token.

        Args:
            token: string.
        """
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def id_to_token(self, token_id: int) -> str | None:
        """Returns the token of an id, or `None` if there is no such id.

        Args:
            token_id: integer.
        """
        if not 0 <= token_id < NUM_TOKEN_IDS:
            return None
        token: str | None = self._tokenizer.id_to_token(int(token_id))
        return token

    @property
    def pad_token_id(self) -> int:
        """The id for padding: that of the padding token, else of the end token, else 0."""
        ids = self.special_token_ids
        return ids.get("pad_token", ids.get("eos_token", 0))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that end a text."""
        return tuple(
            self.special_token_ids[name]
            for name in ("eos_token", "eot_token")
            if name in self.special_token_ids
        )

    @property
    def vocabulary_size(self) -> int:
        """The number of tokens, including special ones."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    @cached_property
    def most_bytes_per_token(self) -> int | None:
        """The most bytes of a text in UTF-8 that one token stands for, or `None` if not known.

        A text that is too long for a model is then known without tokenizing it.
        """
        return find_most_bytes_per_token(read_json_file(self.files, TOKENIZER_NAME))


def _check_padding_side(received: str) -> None:
    if received not in ("left", "right"):
        raise InvalidInputError(unknown_name_message("padding side", received, ("left", "right")))
