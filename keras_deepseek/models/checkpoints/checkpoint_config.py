"""The keys of a checkpoint's `config.json`: those that every model of `transformers` may have."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.models.checkpoints.scaled_tensor import DEFAULT_BLOCK_SHAPE
from keras_deepseek.models.checkpoints.weights_folder import INDEX_SUFFIX

GENERIC_KEYS = frozenset(
    {
        # Where it comes from.
        "architectures",
        "auto_map",
        "model_type",
        "name_or_path",
        "transformers_version",
        "transformers_weights",
        # How `transformers` runs it.
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
        # Of tokens and generation; `generation_config.json` and the tokenizer have the last word.
        "bos_token_id",
        "decoder_start_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        # Of tasks that the class alone decides on.
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
        # Of how it was trained or is stored.
        "initializer_range",
        "pretraining_tp",
        "quantization_config",
    }
)
"""Keys that change nothing of what a model computes, or that are read elsewhere."""


def check_keys(checkpoint_config: Mapping[str, Any], known: Iterable[str]) -> None:
    """Says where a config has a key that a family does not know, and that may change its model.

    Args:
        checkpoint_config: dict. What `config.json` holds.
        known: strings. The keys that the family reads, or passes over knowingly.

    Raises:
        InvalidInputError: There is another one, and the message names all; or heads were pruned.

    Example:

    >>> check_keys({"model_type": "bert", "hidden_size": 8}, ["hidden_size"])
    """
    if checkpoint_config.get("pruned_heads"):
        raise InvalidInputError(
            "The config of the checkpoint has pruned_heads="
            f"{checkpoint_config['pruned_heads']!r}: layers here have all of their heads. Use a "
            "checkpoint whose heads were not taken out."
        )
    allowed = {*known, *GENERIC_KEYS}
    unknown = sorted(
        key
        for key, value in checkpoint_config.items()
        if key not in allowed and not key.startswith("_") and value is not None
    )
    if unknown:
        pairs = ", ".join(f"{key!r}: {checkpoint_config[key]!r}" for key in unknown)
        raise InvalidInputError(
            f"The config of the checkpoint has keys that are not known: {pairs}. Known: "
            f"{', '.join(sorted(known))}. Update keras_deepseek, or take out of config.json what "
            "changes nothing."
        )


def read_block_shape(folder: Path, checkpoint_config: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the blocks that float8 matrices have scales of, by the `quantization_config`.

    Whether experts are in float4 the tensors themselves say: of DeepSeek's releases some name an
    `expert_dtype`, and some do not.

    Args:
        folder: `pathlib.Path`. Where the config is from.
        checkpoint_config: dict. What `config.json` holds.

    Raises:
        NotSupportedError: The weights are quantized in another way than DeepSeek's.
        InvalidInputError: The blocks are not two positive integers.
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
    if not (isinstance(blocks, list) and len(blocks) == len(DEFAULT_BLOCK_SHAPE)) or not all(
        type(size) is int and size > 0 for size in blocks
    ):
        raise InvalidInputError(
            f"`weight_block_size` in the `quantization_config` of {str(folder)!r} must be two "
            f"positive integers, as in [128, 128]; received {blocks!r}."
        )
    return blocks[0], blocks[1]


def read_weights_name(folder: Path, checkpoint_config: Mapping[str, Any]) -> str | None:
    """Returns the file of the weights that a config names; `None` for the one of the usual name.

    Args:
        folder: `pathlib.Path`. Where the config is from.
        checkpoint_config: dict. What `config.json` holds.

    Raises:
        InvalidInputError: It is no name of a safetensors file, or of an index, in the folder.
    """
    name = checkpoint_config.get("transformers_weights")
    suffixes = (".safetensors", INDEX_SUFFIX)
    if name is None:
        return None
    # A name with a path in it would lead out of the folder.
    if not isinstance(name, str) or not name.endswith(suffixes) or Path(name).name != name:
        raise InvalidInputError(
            f"`transformers_weights` in the config.json of {str(folder)!r} must be the name of a "
            f"file there that ends in {' or '.join(suffixes)}, received {name!r}."
        )
    return name
