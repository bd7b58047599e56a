"""The base class of models that read and write checkpoints in the Hugging Face format.

A task sets these attributes, and its family's `checkpoint_map.py` makes the entries:

    class DeepSeekV3CausalLM(PresetModel):
        architectures = ("DeepseekV3ForCausalLM",)
        config_class = DeepSeekV3Config
        ignored_tensors = ("*.rotary_emb.inv_freq",)

        def checkpoint_entries(self, tensors=()):
            return checkpoint_entries(self)

A family that `transformers` does not have can leave `checkpoint_entries` out. Its tensors are then
named by the paths of the variables, and its config, a `PresetConfig`, is written by its fields.
"""

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import keras

from keras_deepseek import backend
from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.checks import check_boolean, check_integer
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.models.checkpoints.checkpoint_config import (
    read_block_shape,
    read_weights_name,
)
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry, path_entries
from keras_deepseek.models.checkpoints.mapped_weights import MappedWeights
from keras_deepseek.models.checkpoints.merged_kernels import check_not_quantized, merged_kernels
from keras_deepseek.models.checkpoints.preset_assets import PresetAssets, read_assets
from keras_deepseek.models.checkpoints.preset_folder import (
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    check_entries,
    check_not_keras_hub,
    find_preset,
    new_preset,
    override_config,
    read_json,
    write_json,
)
from keras_deepseek.models.checkpoints.quantized_loading import QuantizedLoading
from keras_deepseek.models.checkpoints.weights_folder import WeightsFolder
from keras_deepseek.models.checkpoints.weights_reader import read_weights, unset_variables
from keras_deepseek.models.checkpoints.weights_writer import send_weights, write_weights
from keras_deepseek.models.config_model import ConfigModel, read_policy
from keras_deepseek.models.tokenizers.tokenizer import Tokenizer
from keras_deepseek.models.tokenizers.tokenizer_files import check_vocabulary

DTYPES = ("float32", "float16", "bfloat16")
QUANTIZATIONS = ("int8", "int4")


class PresetModel(ConfigModel):
    """A Functional model that can be loaded from a preset folder and saved to one.

    A preset is a folder in the Hugging Face format. A subclass sets the attributes below, and
    follows the rules of `ConfigModel`. Its tensors are named by the paths of its variables unless
    it overrides `checkpoint_entries`.
    """

    architectures: ClassVar[tuple[str, ...]] = ()
    """The names of the class in a `config.json`. All are read, the first one is written."""

    config_class: ClassVar[Any] = None
    """The config dataclass, with `from_checkpoint_config` and `to_checkpoint_config`."""

    ignored_tensors: ClassVar[tuple[str, ...]] = ()
    """Patterns of the names of tensors in a checkpoint that are not read."""

    float32_tensors: ClassVar[tuple[str, ...]] = ()
    """Patterns of the names of tensors that are always written in float32."""

    tokenizer: Tokenizer | None = None
    """The tokenizer of the preset, or another one that was set.

    It is `None` if the preset has no `tokenizer.json` or `tokenizers` is not installed. The files
    of the preset's tokenizer are then saved again unchanged. A model whose tokenizer was set to
    `None` is saved without them."""

    generation_config: Mapping[str, Any] = MappingProxyType({})
    """The content of the preset's `generation_config.json`, such as `eos_token_id`."""

    _tokenizer_files: Mapping[str, bytes] = MappingProxyType({})

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # A property would not do: Keras on TensorFlow does not call its setter for None over None.
        if name == "tokenizer":
            self._tokenizer_files = MappingProxyType({})

    def checkpoint_entries(self, tensors: Collection[str] = ()) -> Sequence[CheckpointEntry]:
        """Returns the map between the variables and the tensors of a checkpoint.

        Args:
            tensors: The names of all tensors in the checkpoint that is read. A family whose
                published checkpoints use several names for one tensor chooses by them; see
                `rename_tensors`. Defaults to `()`: the names that are written.
        """
        return path_entries(self)

    def module_entries(self) -> Sequence[CheckpointEntry]:
        """Returns the map by the module names of `transformers`, which `peft` adapters use."""
        return self.checkpoint_entries()

    @classmethod
    def from_preset(
        cls,
        preset: str | os.PathLike[str],
        *,
        dtype: Any = None,
        quantization: str | None = None,
        load_weights: bool = True,
        verbose: bool = True,
        **config_overrides: Any,
    ) -> Self:
        """Reads the model of a preset, with its weights and its tokenizer.

        Args:
            preset: A folder with a `config.json` and safetensors files, or a repository on the
                Hugging Face hub, as in `"hf://deepseek-ai/DeepSeek-V2-Lite@main"`.
            dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of the layers; `None`
                takes the global one. Defaults to `None`.
            quantization: `"int8"`, `"int4"` or `None`. Quantizes each layer as soon as it is read,
                as `model.quantize` does afterwards: the model is never in memory as a whole in
                floating-point numbers. Defaults to `None`.
            load_weights: boolean. `False` leaves the weights random. Defaults to `True`.
            verbose: boolean. Whether to show a progress bar on the terminal when loading takes
                long. Defaults to `True`.
            **config_overrides: Config values that replace those of the preset.

        Raises:
            InvalidInputError: There is no such preset, it has another architecture, its config has
                an unknown key, or its tokenizer does not fit.
            NotSupportedError: It is quantized in another way than DeepSeek's releases, or `dtype`
                is a policy that quantizes.
            CheckpointError: A file is damaged, or its tensors are not those of the model.
            MissingExtraError: It is on the hub, and `huggingface_hub` is not installed.
        """
        policy = read_policy(dtype)
        if quantization is not None and quantization not in QUANTIZATIONS:
            raise InvalidInputError(
                f"{unknown_name_message('`quantization`', quantization, QUANTIZATIONS)} Or give "
                "None to read the weights as they are."
            )
        load_weights = check_boolean("load_weights", load_weights)
        verbose = check_boolean("verbose", verbose)
        cls._check_is_folder(preset)
        folder = find_preset(preset)
        checkpoint_config = read_json(folder, CONFIG_NAME)
        reader = cls._find_reader(folder, checkpoint_config)
        block_shape = read_block_shape(folder, checkpoint_config)
        weights_name = read_weights_name(folder, checkpoint_config)
        config = reader.config_class.from_checkpoint_config(checkpoint_config)
        config = override_config(config, config_overrides)
        assets = read_assets(folder, checkpoint_config.get("model_type"))
        _check_tokenizer(assets.tokenizer_files, config)
        weights = WeightsFolder(folder, weights_name) if load_weights else None
        model: Self = (
            reader(config, dtype=policy)
            if weights is None
            else _build_and_fill(
                reader, config, policy, weights, block_shape, verbose, quantization
            )
        )
        if quantization is not None:  # Layers that the checkpoint did not fill.
            model.quantize(quantization, filters=lambda layer: layer.quantization_mode is None)
        model._take_assets(assets)
        return model

    @classmethod
    def _check_is_folder(cls, preset: str | os.PathLike[str]) -> None:
        """Raises an error if the preset is the name of a size, which has no weights."""
        sizes = getattr(cls.config_class, "presets", ())
        if isinstance(preset, str) and preset in sizes and not Path(preset).exists():
            raise InvalidInputError(
                f"{preset!r} is a named size, not a folder with weights. For random weights write "
                f"{cls.__name__}({cls.config_class.__name__}.from_preset({preset!r}))."
            )

    @classmethod
    def _find_reader(cls, folder: Path, checkpoint_config: Mapping[str, Any]) -> type[Self]:
        """Returns the class, this one or a subclass, for the architecture in a preset's config."""
        readers = _readers_by_architecture(cls)
        architectures = checkpoint_config.get("architectures") or []
        if not isinstance(architectures, list):
            raise InvalidInputError(
                f'"architectures" in the {CONFIG_NAME} of {str(folder)!r} must be a list, as in '
                f"[{next(iter(readers), 'BertForMaskedLM')!r}]; received {architectures!r}."
            )
        for architecture in architectures:
            if architecture in readers:
                return readers[architecture]
        check_not_keras_hub(folder, checkpoint_config)
        all_readers = _readers_by_architecture(PresetModel)
        fitting = [all_readers[name].__name__ for name in architectures if name in all_readers]
        raise InvalidInputError(
            f"{str(folder)!r} is a checkpoint of {', '.join(map(str, architectures)) or 'no'} "
            f"architecture (model_type {checkpoint_config.get('model_type')!r}), and "
            f"{cls.__name__} reads {' or '.join(readers)}. Use "
            f"{fitting[0] if fitting else 'the class of that architecture'}, or set "
            f'"architectures" in {CONFIG_NAME}.'
        )

    def save_to_preset(
        self,
        folder: str | os.PathLike[str],
        *,
        dtype: str | None = None,
        max_shard_bytes: int = 5 * 10**9,
        verbose: bool = True,
    ) -> None:
        """Writes a folder that `from_preset` reads, and `transformers` too if it has the family.

        The folder holds `config.json`, the weights in safetensors files, the `generation_config`,
        and the files of the `tokenizer`. A LoRA is added to its kernels. The folder is written
        under a temporary name and moved to `folder` when it is complete. An older preset there is
        replaced. If `folder` is a symbolic link, its target is replaced.

        If several processes train together, call it in each of them. Rank 0 writes; the others send
        it their parts of sharded variables. They do not wait until the folder is complete.

        Args:
            folder: Path of the folder to write.
            dtype: `"float32"`, `"float16"`, `"bfloat16"` or `None`. The dtype of floating-point
                tensors; `None` keeps the dtype of each variable. Defaults to `None`.
            max_shard_bytes: integer. The size of a file, in bytes, above which the weights are
                split into several files. Defaults to `5000000000`.
            verbose: boolean. Whether to show a progress bar on the terminal when writing takes
                long. Defaults to `True`.

        Raises:
            InvalidInputError: `dtype` is none of these, or the tokenizer does not fit.
            NotSupportedError: Layers are quantized, as by `model.quantize`.
            CheckpointError: The folder holds other files, or can't be written.
            PeerLostError: Another process has ended, or does not answer.
        """
        if dtype is not None and dtype not in DTYPES:
            raise InvalidInputError(
                f"{unknown_name_message('`dtype`', dtype, DTYPES)} Or give None to keep each dtype."
            )
        max_shard_bytes = check_integer("max_shard_bytes", max_shard_bytes)
        verbose = check_boolean("verbose", verbose)
        _check_tokenizer(self._current_tokenizer_files(), self.config)
        check_not_quantized(self)
        self.mapped_weights.check()
        entries, merged = self.checkpoint_entries(), merged_kernels(self)

        def read_value(variable: keras.Variable) -> Any:
            return merged[id(variable)]() if id(variable) in merged else variable.value

        reading: dict[str, Any] = {
            "dtype": dtype,
            "float32_tensors": self.float32_tensors,
            "read_value": read_value,
        }
        if backend.current().distribution.process_rank() > 0:
            send_weights(entries, **reading)
            return
        with new_preset(folder) as work:
            write_json(work, CONFIG_NAME, self._checkpoint_config(dtype))
            self.save_assets(str(work))
            write_weights(
                work,
                entries,
                max_shard_bytes=max_shard_bytes,
                is_shown=verbose,
                **reading,
            )

    def save(
        self,
        filepath: str | os.PathLike[str],
        overwrite: bool = True,
        zipped: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes a `.keras` file, as for any Keras model, with the tokenizer in it.

        Args:
            filepath: Path of the file.
            overwrite: boolean. As in Keras. Defaults to `True`.
            zipped: boolean or `None`. As in Keras. Defaults to `None`.
            **kwargs: As in Keras.

        Raises:
            InvalidInputError: The tokenizer does not fit.
        """
        # Keras calls `save_assets` only after it has emptied an existing file.
        _check_tokenizer(self._current_tokenizer_files(), self.config)
        self.mapped_weights.check()
        super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)

    def save_assets(self, folder: str) -> None:
        """Writes the tokenizer and the `generation_config` into a `.keras` file or a preset.

        Args:
            folder: string. A folder. Keras puts it into the file.

        Raises:
            InvalidInputError: The tokenizer does not fit.
        """
        files = self._current_tokenizer_files()
        _check_tokenizer(files, self.config)
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        if self.generation_config:
            write_json(Path(folder), GENERATION_CONFIG_NAME, self.generation_config)

    def load_assets(self, folder: str) -> None:
        """Reads the files that `save_assets` wrote. Keras calls it.

        Args:
            folder: string. The folder with the files.
        """
        family = getattr(self.config_class, "family", None)  # A model of one's own has none.
        self._take_assets(read_assets(Path(folder), family.model_type if family else None))

    def _take_assets(self, assets: PresetAssets) -> None:
        if assets.tokenizer is not None:
            self.tokenizer = assets.tokenizer
        self._tokenizer_files = assets.tokenizer_files
        if assets.generation_config is not None:
            self.generation_config = assets.generation_config

    def _current_tokenizer_files(self) -> Mapping[str, bytes]:
        if self.tokenizer is None:
            return self._tokenizer_files
        files = getattr(self.tokenizer, "files", None)
        if not isinstance(files, Mapping):
            raise InvalidInputError(
                "`model.tokenizer` must be a keras_deepseek.models.Tokenizer to be saved, "
                f"received {self.tokenizer!r}. Set another one, or None."
            )
        return files

    def _checkpoint_config(self, dtype: str | None) -> dict[str, Any]:
        if not self.architectures:
            raise InvalidInputError(
                f"{type(self).__name__} has no `architectures`, which `from_preset` looks for. "
                f'Set `architectures = ("{type(self).__name__}",)` in the class.'
            )
        written = {
            **self.config.to_checkpoint_config(),
            "architectures": [self.architectures[0]],
            "dtype": dtype or _most_common_dtype(self.weights),
        }
        for name in ("quantization_config", "transformers_weights"):  # Of the files read.
            written.pop(name, None)
        return written


def _build_and_fill(
    model_class: type[Any],
    config: Any,
    policy: Any,
    weights: WeightsFolder,
    block_shape: tuple[int, int],
    is_shown: bool,
    quantization: str | None,
) -> Any:
    """Builds a model with zeros in place of random weights, and reads or maps its checkpoint.

    With a `quantization` no weight is mapped.
    """
    with unset_variables() as unset:
        model = model_class(config, dtype=policy)
    entries = list(model.checkpoint_entries(weights.names))
    check_entries(entries, unset)
    mapped = MappedWeights()
    loading: dict[str, Any] = {"mapped": mapped}
    if quantization is not None:
        quantized = QuantizedLoading(model, entries, quantization)
        loading = {"finish_entry": quantized.finish_entry}
        unset.clear()
    read_weights(
        weights,
        # A layer that is quantized has other weights: nothing here may hold the old ones.
        (entries.pop(0) for _ in range(len(entries))),
        ignored_tensors=model.ignored_tensors,
        block_shape=block_shape,
        is_shown=is_shown,
        **loading,
    )
    for layer in flatten_layers(model):
        if isinstance(layer, ConfigModel):
            layer.mapped_weights = mapped
    return model


def _readers_by_architecture(model_class: type[Any]) -> dict[str, type[Any]]:
    """Returns a class and its subclasses, by the architecture names that they declare.

    Where a subclass inherits its architecture, the class above it wins.
    """
    readers: dict[str, type[Any]] = {}
    generation = [model_class]
    while generation:
        for reader in generation:
            for architecture in reader.architectures:
                readers.setdefault(architecture, reader)
        generation = [subclass for above in generation for subclass in above.__subclasses__()]
    return readers


def _most_common_dtype(variables: Sequence[keras.Variable]) -> str:
    counts = Counter(variable.dtype for variable in variables)
    return str(counts.most_common(1)[0][0])


def _check_tokenizer(files: Mapping[str, bytes], config: Any) -> None:
    vocabulary_size = getattr(config, "vocabulary_size", None)
    if files and vocabulary_size is not None:
        check_vocabulary(files, vocabulary_size)
