"""Model families, one folder each, with a config, a backbone and tasks.

All models are plain Functional `keras.Model`s. Code that families share stands beside their
folders: `checkpoints` reads and writes weights, `tokenizers` converts text to tokens and back.
"""

from keras_deepseek.backend import installed_keras  # noqa: F401 - To raise its error first.
from keras_deepseek.models.bert import BertBackbone, BertConfig, BertMaskedLM
from keras_deepseek.models.causal_lm import CausalLM
from keras_deepseek.models.decoder import (
    DecoderBackbone,
    DecoderBlock,
    MultiTokenLoss,
    TokenLogits,
)
from keras_deepseek.models.deepseek_v2 import (
    DeepSeekV2Backbone,
    DeepSeekV2CausalLM,
    DeepSeekV2Config,
)
from keras_deepseek.models.deepseek_v3 import (
    DeepSeekV3Backbone,
    DeepSeekV3CausalLM,
    DeepSeekV3Config,
)
from keras_deepseek.models.deepseek_v4 import (
    DeepSeekV4Backbone,
    DeepSeekV4CausalLM,
    DeepSeekV4Config,
    DeepSeekV4DecoderLayer,
    DeepSeekV4TokenPrediction,
)
from keras_deepseek.models.deepseek_v32 import (
    DeepSeekV32Backbone,
    DeepSeekV32CausalLM,
    DeepSeekV32Config,
)
from keras_deepseek.models.dense_decoder import (
    LlamaBackbone,
    LlamaCausalLM,
    LlamaConfig,
    Qwen2Backbone,
    Qwen2CausalLM,
    Qwen2Config,
    Qwen3Backbone,
    Qwen3CausalLM,
    Qwen3Config,
)
from keras_deepseek.models.generation import Sampler
from keras_deepseek.models.lora import (
    enable_lora,
    load_lora_weights,
    load_peft_adapter,
    merge_lora,
    save_lora_weights,
    save_peft_adapter,
)
from keras_deepseek.models.packed_causal_lm import make_packed_model
from keras_deepseek.models.residual_image_classifier import (
    ResidualBackbone,
    ResidualImageClassifier,
    ResidualImageClassifierConfig,
)
from keras_deepseek.models.sequential_recommender import (
    HitRate,
    Interactions,
    LeaveLastOut,
    NormalizedDiscountedCumulativeGain,
    SequentialRecommender,
    SequentialRecommenderBackbone,
    SequentialRecommenderConfig,
    SyntheticInteractions,
    read_movielens,
)
from keras_deepseek.models.tokenizers import Tokenizer

__all__ = [
    "BertBackbone",
    "BertConfig",
    "BertMaskedLM",
    "CausalLM",
    "DecoderBackbone",
    "DecoderBlock",
    "DeepSeekV2Backbone",
    "DeepSeekV2CausalLM",
    "DeepSeekV2Config",
    "DeepSeekV3Backbone",
    "DeepSeekV3CausalLM",
    "DeepSeekV3Config",
    "DeepSeekV4Backbone",
    "DeepSeekV4CausalLM",
    "DeepSeekV4Config",
    "DeepSeekV4DecoderLayer",
    "DeepSeekV4TokenPrediction",
    "DeepSeekV32Backbone",
    "DeepSeekV32CausalLM",
    "DeepSeekV32Config",
    "HitRate",
    "Interactions",
    "LeaveLastOut",
    "LlamaBackbone",
    "LlamaCausalLM",
    "LlamaConfig",
    "MultiTokenLoss",
    "NormalizedDiscountedCumulativeGain",
    "Qwen2Backbone",
    "Qwen2CausalLM",
    "Qwen2Config",
    "Qwen3Backbone",
    "Qwen3CausalLM",
    "Qwen3Config",
    "ResidualBackbone",
    "ResidualImageClassifier",
    "ResidualImageClassifierConfig",
    "Sampler",
    "SequentialRecommender",
    "SequentialRecommenderBackbone",
    "SequentialRecommenderConfig",
    "SyntheticInteractions",
    "TokenLogits",
    "Tokenizer",
    "enable_lora",
    "load_lora_weights",
    "load_peft_adapter",
    "make_packed_model",
    "merge_lora",
    "read_movielens",
    "save_lora_weights",
    "save_peft_adapter",
]


def __dir__() -> list[str]:
    return sorted(__all__)
