"""The keys of a checkpoint's `config.json`: those that every model of `transformers` may have."""

from collections.abc import Iterable, Mapping
from typing import Any

from keras_deepseek.artifacts.errors import InvalidInputError

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
