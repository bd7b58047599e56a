"""Functions that check and read the keys of `config.json` that all model families share."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.models.checkpoints.scaled_tensor import DEFAULT_BLOCK_SHAPE
from keras_deepseek.models.checkpoints.weights_folder import INDEX_SUFFIX

GENERIC_KEYS = frozenset(
    {
        # The origin of the checkpoint.
        "architectures",
        "auto_map",
        "model_type",
        "name_or_path",
        "transformers_version",
        "transformers_weights",
        # Options of `transformers` at run time.
        "attn_implementation",
        "chunk_size_feed_forward",
        "dtype",
        "gradient_checkpointing",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "torch_dtype",
        "torchscript",
        "use_cache",
        # Tokens. `generation_config.json` and the tokenizer take precedence.
        "bos_token_id",
        "decoder_start_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        # The task, which the class determines.
        "cross_attention_hidden_size",
        "add_cross_attention",
        "finetuning_task",
        "id2label",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "num_labels",
        "prefix",
        "problem_type",
        "pruned_heads",
        "task_specific_params",
        "tie_encoder_decoder",
        "tokenizer_class",
        # Training and storage.
        "initializer_range",
        "pretraining_tp",
        "quantization_config",
    }
)
"""Keys that do not change what a model computes, or that are read elsewhere."""


def check_keys(checkpoint_config: Mapping[str, Any], supported_keys: Iterable[str]) -> None:
    """Raises an error if a `config.json` has a key that the family does not know.

    An unknown key may change the model, so it is not ignored. `supported_keys` includes
    the keys that the family ignores on purpose.
    """
    if checkpoint_config.get("pruned_heads"):
        raise InvalidInputError(
            "The config of the checkpoint has pruned_heads="
            f"{checkpoint_config['pruned_heads']!r}, and pruned heads are not supported. Use a "
            "checkpoint that has all of its heads."
        )
    allowed = {*supported_keys, *GENERIC_KEYS}
    unknown = sorted(
        key
        for key, value in checkpoint_config.items()
        if key not in allowed and not key.startswith("_") and value is not None
    )
    if unknown:
        pairs = ", ".join(f"{key!r}: {checkpoint_config[key]!r}" for key in unknown)
        raise InvalidInputError(
            f"The config of the checkpoint has unknown keys: {pairs}. Known keys: "
            f"{', '.join(sorted(supported_keys))}. Update keras_deepseek, or remove the keys from "
            "config.json if they do not change the model."
        )


def read_block_shape(folder: Path, checkpoint_config: Mapping[str, Any]) -> tuple[int, int]:
    """Reads from a config the shape, `(rows, columns)`, of a float8 matrix's blocks with one scale.

    A config may say nothing of experts in float4: these are recognized by their tensors.
    """
    quantization = checkpoint_config.get("quantization_config")
    if not quantization:
        return DEFAULT_BLOCK_SHAPE
    if not isinstance(quantization, Mapping):
        raise InvalidInputError(
            f"`quantization_config` in the config.json of {str(folder)!r} must be an object, "
            f"received {quantization!r}."
        )
    for key, expected in (("quant_method", ("fp8",)), ("fmt", ("e4m3", None))):
        received = quantization.get(key)
        if received not in expected:
            raise NotSupportedError(
                f"{str(folder)!r} is quantized by {received!r} (`{key}`); expected "
                f"{expected[0]!r}, or no quantization. Fetch the checkpoint in bfloat16."
            )
    blocks = quantization.get("weight_block_size")
    if blocks is None:
        return DEFAULT_BLOCK_SHAPE
    is_pair = isinstance(blocks, list) and len(blocks) == len(DEFAULT_BLOCK_SHAPE)
    if not is_pair or not all(type(size) is int and size > 0 for size in blocks):
        raise InvalidInputError(
            f"`weight_block_size` in the `quantization_config` of {str(folder)!r} must be two "
            f"positive integers, as in [128, 128]; received {blocks!r}."
        )
    return blocks[0], blocks[1]


def read_weights_name(folder: Path, checkpoint_config: Mapping[str, Any]) -> str | None:
    """Reads the file name of the weights from a config; `None` means the default name."""
    name = checkpoint_config.get("transformers_weights")
    suffixes = (".safetensors", INDEX_SUFFIX)
    if name is None:
        return None
    # A path in the name could point outside of the folder.
    if not isinstance(name, str) or not name.endswith(suffixes) or Path(name).name != name:
        raise InvalidInputError(
            f"`transformers_weights` in the config.json of {str(folder)!r} must be the name of a "
            f"file there that ends in {' or '.join(suffixes)}, received {name!r}."
        )
    return name


_TRAINED_LENGTH = "original_max_position_embeddings"
_BY_LENGTH = ("dynamic", "yarn", "llama3", "longrope")
"""The types of rotary scaling that need the length the model was trained with."""


def check_required_keys(values: Mapping[str, Any], required: Sequence[str]) -> None:
    """Raises an error if a `config.json` lacks a required key.

    The value of a key may be `None`.
    """
    missing = [name for name in required if name not in values]
    if missing:
        raise InvalidInputError(
            f"The config of the checkpoint (model_type {values.get('model_type')!r}) lacks "
            f"{', '.join(missing)}. Add it to config.json."
        )


def check_checkpoint_value(values: Mapping[str, Any], name: str, *, allowed: Sequence[Any]) -> None:
    """Raises an error if a key of a `config.json` has a value that is not supported.

    A missing key and `None` are supported.
    """
    received = values.get(name)
    if received is not None and received not in allowed:
        expected = " or ".join(map(repr, allowed))
        raise InvalidInputError(
            f"`{name}` in the config.json must be {expected}, received {received!r}, which is not "
            "supported."
        )


def read_object(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the dict at a key of a `config.json`; an empty dict if it is missing or null."""
    received = values.get(name)
    if received is not None and not isinstance(received, Mapping):
        raise InvalidInputError(
            f"`{name}` in the config.json must be an object or null, received {received!r}."
        )
    return dict(received or {})


def read_rope(values: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Reads the rotary embedding's `rope_theta` and scaling from a `config.json`.

    Older files have the keys `rope_theta` and `rope_scaling`, newer ones `rope_parameters` for
    both.
    """
    # A file may have both, with the same values.
    scaling = read_object(values, "rope_scaling") or read_object(values, "rope_parameters")
    scaling = {name: value for name, value in scaling.items() if value is not None}
    theta = scaling.pop("rope_theta", values.get("rope_theta") or 10000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return float(theta), None
    return float(theta), complete_scaling(scaling, values.get("max_position_embeddings"))


def complete_scaling(scaling: Mapping[str, Any], max_length: Any) -> dict[str, Any]:
    """Fills in the missing keys of a rotary scaling with the defaults of transformers.

    The default of the trained length is `max_length`. The default factor of `longrope` is
    `max_length` divided by the trained length.
    """
    completed = dict(scaling)
    kind = completed.get("rope_type", completed.get("type"))
    if kind not in _BY_LENGTH or not isinstance(max_length, int):
        return completed
    trained = completed.setdefault(_TRAINED_LENGTH, max_length)
    if kind == "longrope" and isinstance(trained, int) and trained > 0:
        completed.setdefault("factor", max_length / trained)
    return completed
