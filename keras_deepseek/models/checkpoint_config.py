"""What the `config.json` of a checkpoint holds, by which a family's config is made and written.

Each family has a table of the keys that are its own; what is common to all models of transformers
is known here. A key that nobody knows is an error: it may change what the model computes.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any

from keras_deepseek.artifacts.errors import InvalidInputError, unknown_name_message

GENERIC_KEYS = frozenset(
    {
        "_attn_implementation",
        "_name_or_path",
        "add_cross_attention",
        "architectures",
        "attn_implementation",
        "auto_map",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "eos_token_id",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "id2label",
        "is_decoder",
        "is_encoder_decoder",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "model_type",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "pruned_heads",
        "quantization_config",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "typical_p",
        "use_bfloat16",
        "use_cache",
    }
)
"""Keys of any model, which change nothing of what it computes, or are read elsewhere."""


def check_checkpoint_keys(
    values: Mapping[str, Any], known: Set[str], required: Set[str], model_type: str
) -> None:
    """Raises an error where a `config.json` is that of another model, or has an unknown key.

    Args:
        values: dict. The file.
        known: set of strings. The keys of the family; those of any model are known beside them.
        required: set of strings. Those of them that must be there.
        model_type: string. What the family's files have under that name.

    Raises:
        InvalidInputError: It is. The message names the keys.
    """
    received = values.get("model_type")
    if received != model_type:
        raise InvalidInputError(
            f"The `config.json` must have the model_type {model_type!r}, received {received!r}. "
            "Load it with the model of its own family."
        )
    known = known | GENERIC_KEYS
    for name in values:
        if name not in known:
            raise InvalidInputError(
                unknown_name_message(f"key of a {model_type} `config.json`", name, known)
            )
    missing = sorted(required - set(values))
    if missing:
        raise InvalidInputError(
            f"A {model_type} `config.json` needs {', '.join(missing)}, which this one has not."
        )


def check_checkpoint_value(values: Mapping[str, Any], name: str, *, allowed: Sequence[Any]) -> None:
    """Raises an error where a key has a value that the family's models have not.

    Args:
        values: dict. The file. The key may be missing.
        name: string. The key.
        allowed: sequence. What it may hold; `None` always.

    Raises:
        InvalidInputError: It holds something else.
    """
    received = values.get(name)
    if received is not None and received not in allowed:
        expected = " or ".join(map(repr, allowed))
        raise InvalidInputError(
            f"`{name}` of the `config.json` must be {expected}, received {received!r}: there is no "
            "such layer here."
        )


def read_rope(values: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Returns the base of the rotary angles, and their scaling, from the older or the newer keys.

    Args:
        values: dict. The file: with `rope_theta` and `rope_scaling`, or `rope_parameters` for both.
    """
    # Both stand in files that a newer release wrote for older ones; they then say the same.
    scaling = values.get("rope_scaling") or values.get("rope_parameters") or {}
    scaling = {name: value for name, value in scaling.items() if value is not None}
    theta = scaling.pop("rope_theta", values.get("rope_theta") or 10000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    return float(theta), None if kind == "default" else scaling
