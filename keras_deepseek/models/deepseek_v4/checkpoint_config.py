"""Conversion between `DeepSeekV4Config` and the `config.json` of transformers or DeepSeek.

The two formats differ. DeepSeek's has a compression ratio for each layer and one `rope_scaling`;
transformers has the name of each layer's type and nested `rope_parameters`.
"""

from collections.abc import Mapping
from typing import Any

from keras_deepseek.checks import check_number
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.models.checkpoints.checkpoint_config import (
    check_checkpoint_value,
    check_keys,
    complete_scaling,
    read_object,
)
from keras_deepseek.models.deepseek_v4.family import DEEPSEEK_V4

_NAMES = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "hidden_dim",
    "num_attention_heads": "num_heads",
    "head_dim": "head_dim",
    "q_lora_rank": "query_lora_rank",
    "o_groups": "num_output_groups",
    "o_lora_rank": "output_lora_rank",
    "moe_intermediate_size": "moe_intermediate_dim",
    "n_routed_experts": "num_experts",
    "num_experts_per_tok": "num_experts_per_token",
    "sliding_window": "sliding_window",
    "index_n_heads": "index_num_heads",
    "index_head_dim": "index_head_dim",
    "index_topk": "index_top_k",
    "hc_mult": "num_streams",
    "hc_sinkhorn_iters": "sinkhorn_iterations",
    "hc_eps": "stream_epsilon",
    "routed_scaling_factor": "routed_scale",
    "swiglu_limit": "clamp",
    "rope_theta": "rope_max_wavelength",
    "compress_rope_theta": "compress_rope_max_wavelength",
    "max_position_embeddings": "max_length",
    "rms_norm_eps": "epsilon",
    "attention_dropout": "attention_dropout",
    "tie_word_embeddings": "tie_word_embeddings",
    "initializer_range": "initializer_range",
    "bos_token_id": "start_token_id",
    "eos_token_id": "end_token_id",
    "pad_token_id": "pad_token_id",
}
"""Keys with the same meaning as one of our fields, by our names."""

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 129280,
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "head_dim": 512,
    "q_lora_rank": 1024,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 6,
    "max_position_embeddings": 1048576,
}
"""The defaults of transformers for missing keys, if we need a value."""

_FIXED_VALUES: dict[str, tuple[Any, ...]] = {
    "model_type": (DEEPSEEK_V4.model_type,),
    "hidden_act": ("silu",),
    "num_key_value_heads": (1,),
    "n_shared_experts": (1,),
    "norm_topk_prob": (True,),
    "topk_method": ("noaux_tc",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
}
"""Keys that have only one value in every DeepSeek-V4."""

_SCORINGS = {"sqrtsoftplus": "sqrt_softplus", "sigmoid": "sigmoid"}
_RATIOS = {0: "sliding_attention", 4: "compressed_sparse_attention"}
_RATIOS[128] = "heavily_compressed_attention"
_ROUTERS = {"hash_moe": "hash", "moe": "score"}
_NUM_LAYERS, _NUM_HASH_LAYERS = 43, 3
_PARTIAL_ROTARY_FACTOR = 64 / 512

_SPECIAL_KEYS = {
    "compress_rate_csa",
    "compress_rate_hca",
    "compress_rates",
    "compress_ratios",
    "layer_types",
    "mlp_layer_types",
    "num_hash_layers",
    "num_hidden_layers",
    "partial_rotary_factor",
    "qk_rope_head_dim",
    "rope_parameters",
    "rope_scaling",
    "scoring_func",
}

_IGNORED_KEYS = {
    "dspark_block_size",
    "dspark_markov_rank",
    "dspark_noise_token_id",
    "dspark_target_layer_ids",
    "expert_dtype",
    "intermediate_size",
    "num_local_experts",
    "num_nextn_predict_layers",
    "output_router_logits",
    "router_aux_loss_coef",
    "router_jitter_noise",
}
"""Keys, beside the generic ones, that do not change the model or are read elsewhere."""


def read_checkpoint_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Converts a `config.json` to the constructor arguments of `DeepSeekV4Config`."""
    supported_keys = {*_NAMES, *_FIXED_VALUES, *_SPECIAL_KEYS, *_IGNORED_KEYS}
    check_keys(config, supported_keys)
    for name, values in _FIXED_VALUES.items():
        check_checkpoint_value(config, name, allowed=values)
    settings = {**_DEFAULTS, **{name: x for name, x in config.items() if x is not None}}
    arguments = {ours: settings[name] for name, ours in _NAMES.items() if name in settings}
    scoring = settings.get("scoring_func", "sqrtsoftplus")
    if scoring not in _SCORINGS:
        raise InvalidInputError(unknown_name_message("`scoring_func`", scoring, _SCORINGS))
    return {
        **arguments,
        **_read_layers(settings),
        **_read_rates(settings),
        **_read_rotary(settings, arguments["head_dim"]),
        "scoring": _SCORINGS[scoring],
    }


def _read_layers(settings: Mapping[str, Any]) -> dict[str, Any]:
    count = settings.get("num_hidden_layers", _NUM_LAYERS)
    types = settings.get("layer_types")
    if types is None and "compress_ratios" in settings:
        types = [
            _look_up("compress_ratios", ratio, _RATIOS) for ratio in settings["compress_ratios"]
        ]
    if types is None:  # The default of transformers.
        heavy, sparse = "heavily_compressed_attention", "compressed_sparse_attention"
        types = [heavy, heavy, *([heavy, sparse] * count)][:count]
    routers = settings.get("mlp_layer_types")
    if routers is None:
        num_hash = settings.get("num_hash_layers", _NUM_HASH_LAYERS)
        routers = ["hash_moe" if index < num_hash else "moe" for index in range(count)]
    if min(len(types), len(routers)) < count:
        raise InvalidInputError(
            f"A config with {count} `num_hidden_layers` must have as many layer types, received "
            f"{len(types)} attention types and {len(routers)} router types."
        )
    # Further types belong to layers that predict further tokens.
    return {
        "layer_types": tuple(types[:count]),
        "router_types": tuple(
            _look_up("mlp_layer_types", router, _ROUTERS) for router in routers[:count]
        ),
    }


def _look_up(name: str, value: Any, names: Mapping[Any, str]) -> str:
    if value not in names:
        raise InvalidInputError(
            f"`{name}` must be one of {', '.join(map(str, names))}, received {value!r}."
        )
    return names[value]


def _read_rates(settings: Mapping[str, Any]) -> dict[str, Any]:
    rates = settings.get("compress_rates", {})
    named = {
        "sparse_compress_rate": ("compressed_sparse_attention", "compress_rate_csa"),
        "heavy_compress_rate": ("heavily_compressed_attention", "compress_rate_hca"),
    }
    read = {ours: settings.get(older, rates.get(kind)) for ours, (kind, older) in named.items()}
    return {ours: rate for ours, rate in read.items() if rate is not None}


def _read_rotary(settings: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """Returns the arguments of the rotary embeddings, from nested or flat keys of a config."""
    parameters = read_object(settings, "rope_parameters") or read_object(settings, "rope_scaling")
    factor = settings.get("partial_rotary_factor")
    main, compress = (read_object(parameters, kind) for kind in ("main", "compress"))
    length = settings["max_position_embeddings"]
    read: dict[str, Any] = {}
    if all(parameters.get(kind) is not None for kind in ("main", "compress")):
        for kind, prefix in ((main, ""), (compress, "compress_")):
            wavelength = kind.pop("rope_theta", None)
            if wavelength is not None:
                read[f"{prefix}rope_max_wavelength"] = wavelength
            factor = kind.pop("partial_rotary_factor", factor)
        # With nested keys, YaRN scales the amplitude by default. Here `None` asks for that.
        read["rope_scaling"] = _read_scaling({"attention_factor": None, **main}, length)
        read["compress_rope_scaling"] = _read_scaling(
            {"attention_factor": None, **compress}, length
        )
    else:
        flat = {
            name: x
            for name, x in parameters.items()
            if name not in ("main", "compress", "rope_theta", "partial_rotary_factor")
        }
        read["compress_rope_scaling"] = _read_scaling(flat, length)
    rotated = settings.get("qk_rope_head_dim")
    if rotated is None:
        factor = _PARTIAL_ROTARY_FACTOR if factor is None else factor
        rotated = int(head_dim * check_number("partial_rotary_factor", factor, above=0))
    return {**read, "rope_head_dim": rotated}


def _read_scaling(parameters: Mapping[str, Any], max_length: Any) -> dict[str, Any] | None:
    scaling = dict(parameters)
    older_name = scaling.pop("type", None)
    kind = scaling.get("rope_type", older_name) or "default"
    if kind != "yarn" and scaling.get("attention_factor") is None:
        scaling.pop("attention_factor", None)
    if kind == "yarn" and "attention_factor" not in scaling:
        scaling["attention_factor"] = 1.0
    if kind == "default":
        return None
    return complete_scaling({**scaling, "rope_type": kind}, max_length)


def write_checkpoint_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the fields of a `DeepSeekV4Config` to a `config.json` that transformers reads."""
    scoring_names = {ours: name for name, ours in _SCORINGS.items()}
    router_names = {ours: name for name, ours in _ROUTERS.items()}
    rotary_share = _to_factor(fields["rope_head_dim"], fields["head_dim"])
    rotary = {}
    for kind, prefix in (("main", ""), ("compress", "compress_")):
        scaling = dict(fields[f"{prefix}rope_scaling"] or {"rope_type": "default"})
        scaling["rope_type"] = scaling.pop("type", scaling.get("rope_type"))
        if scaling["rope_type"] == "yarn":
            scaling.setdefault("attention_factor", 1.0)
        rotary[kind] = {
            **{name: value for name, value in scaling.items() if value is not None},
            "rope_theta": fields[f"{prefix}rope_max_wavelength"],
            "partial_rotary_factor": rotary_share,
        }
    return {
        "architectures": [DEEPSEEK_V4.architectures[0]],
        "num_nextn_predict_layers": fields["num_prediction_layers"],
        **{name: values[0] for name, values in _FIXED_VALUES.items() if name != "topk_method"},
        **{name: _to_json(fields[ours]) for name, ours in _NAMES.items()},
        "num_hidden_layers": len(fields["layer_types"]),
        "layer_types": list(fields["layer_types"]),
        "mlp_layer_types": [router_names[router] for router in fields["router_types"]],
        "compress_rates": {
            "compressed_sparse_attention": fields["sparse_compress_rate"],
            "heavily_compressed_attention": fields["heavy_compress_rate"],
        },
        "partial_rotary_factor": rotary_share,
        "rope_parameters": rotary,
        "scoring_func": scoring_names[fields["scoring"]],
    }


def _to_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _to_factor(rotated: int, head_dim: int) -> float:
    """Returns `rotated / head_dim` as a float that converts back to the exact integer."""
    factor = rotated / head_dim
    return factor if int(head_dim * factor) == rotated else (rotated + 0.5) / head_dim
