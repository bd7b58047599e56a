"""Functions that find, download, read, check and atomically replace preset folders."""

import fnmatch
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import keras

from keras_deepseek.artifacts.staging_folder import flush_to_disk, replace_folder, staging_folder
from keras_deepseek.chat import find_chat_style
from keras_deepseek.checks import check_path
from keras_deepseek.errors import (
    BundleError,
    CheckpointError,
    InvalidInputError,
    MissingExtraError,
    unknown_name_message,
)
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.tokenizers.tokenizer_files import (
    TOKENIZER_FILES,
)

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
HUB_PREFIX = "hf://"
_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
_OWN_FILES = (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    *TOKENIZER_FILES,
)


def find_preset(preset: str | os.PathLike[str]) -> Path:
    """Returns the local folder of a preset; one on the Hugging Face hub is downloaded first.

    The preset is a folder, `"hf://org/name"`, or `"hf://org/name@revision"`.
    """
    name = check_path("preset", preset)
    if name.startswith(HUB_PREFIX):
        return _fetch(name)
    folder = Path(name)
    if not folder.is_dir():
        hint = f" For a model on the Hugging Face hub write {HUB_PREFIX + name!r}."
        raise InvalidInputError(
            f"There is no folder {name!r}: expected one with a {CONFIG_NAME} and safetensors "
            f"files.{hint if _HUB_NAME.fullmatch(name) else ''}"
        )
    return folder


def _fetch(preset: str) -> Path:
    repository, _, revision = preset.removeprefix(HUB_PREFIX).partition("@")
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise InvalidInputError(
            f"`preset` must have the form 'hf://organization/name@revision', received {preset!r}."
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "hub", "to fetch a preset") from error
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision or None, allow_patterns=list(_OWN_FILES)
            )
        )
    except (OSError, ValueError) as error:  # Errors of the hub and the network are subclasses.
        raise InvalidInputError(
            f"The Hugging Face hub did not return {preset!r}: {type(error).__name__}: "
            f"{str(error).strip().partition(chr(10))[0]}"
        ) from error


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Reads a JSON file of a preset, and checks that it holds an object."""
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{str(folder / name)!r} can't be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{str(folder / name)!r} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{str(folder / name)!r} must hold a JSON object.")
    return content


def read_chat_style(folder: Path) -> str | None:
    """Returns the message format of a preset's family, or `None` if it has none."""
    if not (folder / CONFIG_NAME).exists():
        return None
    return find_chat_style(read_json(folder, CONFIG_NAME).get("model_type"))


def write_json(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Writes a dict to a JSON file of a preset."""
    text = json.dumps(dict(content), indent=2, sort_keys=True, ensure_ascii=False)
    (folder / name).write_text(text + "\n", encoding="utf-8")


def new_preset(path: str | os.PathLike[str]) -> AbstractContextManager[Path]:
    """Returns a context manager that yields an empty folder and moves it to `path` at the end.

    An older preset at `path`, which may be a link, is replaced. A folder with other files is an
    error.
    """
    return new_folder(path, _OWN_FILES, CONFIG_NAME)


@contextmanager
def new_folder(
    path: str | os.PathLike[str], own_files: Sequence[str], first_file: str
) -> Iterator[Path]:
    """A context manager that yields an empty folder, and moves it to `path` at the end.

    If the block raises an error, `path` stays as it was. Raises a `CheckpointError` if the older
    folder lacks `first_file`, or has files that match none of the patterns `own_files`.
    """
    target = Path(check_path("folder", path)).absolute()
    try:
        if target.is_symlink():  # Keep the link, replace its target.
            target = target.resolve()
        _check_target(target, own_files, first_file)
        with staging_folder(target) as work:
            folder = work / target.name
            folder.mkdir()
            yield folder
            for file in folder.iterdir():
                flush_to_disk(file)
            _check_target(target, own_files, first_file)
            replace_folder(folder, target)
            flush_to_disk(target.parent)
    except OSError as error:
        raise CheckpointError(
            f"The preset {str(target)!r} can't be written: {error.strerror}."
        ) from error
    except BundleError as error:
        raise CheckpointError(str(error)) from error


def _check_target(target: Path, own_files: Sequence[str], first_file: str) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise CheckpointError(f"{str(target)!r} is a file, expected a folder. Choose another path.")
    names = sorted(path.name for path in target.iterdir())
    foreign = [
        name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in own_files)
    ]
    if foreign or (names and first_file not in names):
        raise CheckpointError(
            f"{str(target)!r} was not replaced: it holds {', '.join((foreign or names)[:5])}, "
            "which is not part of a preset. Move it, or choose a new folder."
        )


def override_config(config: Any, overrides: Mapping[str, Any]) -> Any:
    """Returns a config with some fields replaced by the values that the user passed."""
    names = [field.name for field in fields(config)]
    for name in overrides:
        if name not in names:
            raise InvalidInputError(unknown_name_message("config value", name, names))
    return replace(config, **overrides)


def check_not_keras_hub(folder: Path, checkpoint_config: Mapping[str, Any]) -> None:
    """Raises an error if a preset's `config.json` was written by KerasHub.

    `keras-deepseek serve` alone takes it.
    """
    class_name = find_keras_hub_class(checkpoint_config)
    if class_name is not None:
        raise InvalidInputError(
            f"{str(folder)!r} is a preset of KerasHub, of its class {class_name!r}. Read it with "
            "`keras_hub`, serve it by `keras-deepseek serve`, or fetch the model in the Hugging "
            "Face format, which is read here."
        )


def find_keras_hub_class(checkpoint_config: Mapping[str, Any]) -> str | None:
    """Returns the class in a `config.json` that KerasHub wrote, or `None` for another one.

    Its layout is that of Keras's own serialization.
    """
    return checkpoint_config.get("registered_name") or checkpoint_config.get("class_name")


def check_entries(entries: Sequence[CheckpointEntry], unset: Sequence[keras.Variable]) -> None:
    """Raises an error if a checkpoint map leaves a variable out or fills one twice.

    `unset` are the variables of the model that have no values yet.
    """
    filled = [variable for entry in entries for variable in entry.variables]
    counts = {id(variable): 0 for variable in (*unset, *filled)}
    for variable in filled:
        counts[id(variable)] += 1
    wrong = [variable.path for variable in (*unset, *filled) if counts[id(variable)] != 1]
    if wrong:
        raise InvalidInputError(
            "The checkpoint map must have exactly one entry for each variable. "
            f"{sorted(set(wrong))} have none or several."
        )
