"""The backbones and the causal language models of Llama, Qwen2 and Qwen3."""

from collections.abc import Collection
from typing import Any, ClassVar

import keras

from keras_deepseek.layers import (
    GroupedQueryAttention,
    ReversibleEmbedding,
    RMSNormalization,
    RotaryEmbedding,
    SwiGLU,
)
from keras_deepseek.models.causal_lm import CausalLM
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.config_model import read_policy
from keras_deepseek.models.decoder.decoder_backbone import DecoderBackbone
from keras_deepseek.models.decoder.decoder_block import DecoderBlock
from keras_deepseek.models.dense_decoder.checkpoint_map import IGNORED_TENSORS, checkpoint_entries
from keras_deepseek.models.dense_decoder.config import LlamaConfig, Qwen2Config, Qwen3Config
from keras_deepseek.models.dense_decoder.dense_decoder_config import DenseDecoderConfig
from keras_deepseek.models.dense_decoder.families import LLAMA, QWEN2, QWEN3


class DenseDecoderBackbone(DecoderBackbone):
    """A `DecoderBackbone` of Llama, Qwen2 or Qwen3, built from a `DenseDecoderConfig`.

    A family sets its `config_class`.
    """

    def __init__(self, config: DenseDecoderConfig, *, dtype: Any = None, **kwargs: Any) -> None:
        policy = read_policy(dtype)
        embedding = ReversibleEmbedding(
            config.vocabulary_size,
            config.hidden_dim,
            tie_weights=config.tie_word_embeddings,
            embeddings_initializer=_make_initializer(config),
            dtype=policy,
            name="token_embedding",
        )
        blocks = [_make_block(config, index, policy) for index in range(config.num_layers)]
        norm = RMSNormalization(epsilon=config.epsilon, dtype=policy, name="final_norm")
        super().__init__(config, embedding, blocks, norm, **kwargs)


def _make_block(config: DenseDecoderConfig, index: int, policy: Any) -> DecoderBlock:
    arguments = {"kernel_initializer": _make_initializer(config), "dtype": policy}
    rotary = RotaryEmbedding(
        config.rope_max_wavelength, scaling=config.rope_scaling, max_length=config.max_length
    )
    attention = GroupedQueryAttention(
        **config.attention_arguments(index), rotary=rotary, **arguments, name="attention"
    )
    use_bias = getattr(config, "use_feed_forward_bias", False)
    feed_forward = SwiGLU(
        config.intermediate_dim, use_bias=use_bias, **arguments, name="feed_forward"
    )
    return DecoderBlock(
        attention,
        feed_forward,
        epsilon=config.epsilon,
        dtype=policy,
        name=f"transformer_layer_{index}",
    )


def _make_initializer(config: DenseDecoderConfig) -> keras.initializers.Initializer:
    return keras.initializers.RandomNormal(stddev=config.initializer_range)


class DenseCausalLM(CausalLM):
    """A `CausalLM` of Llama, Qwen2 or Qwen3, built from its config.

    A family sets its `architectures`, its `config_class` and its `backbone_class`.
    """

    backbone_class: ClassVar[type[Any]]
    """The class of the backbone, which takes the same arguments."""

    ignored_tensors = IGNORED_TENSORS

    def __init__(self, config: Any, *, dtype: Any = None, **kwargs: Any) -> None:
        super().__init__(self.backbone_class(config, dtype=dtype, name="backbone"), **kwargs)

    def checkpoint_entries(self, tensors: Collection[str] = ()) -> list[CheckpointEntry]:
        return checkpoint_entries(self.backbone)


@keras.saving.register_keras_serializable("keras_deepseek")
class LlamaBackbone(DenseDecoderBackbone):
    """The blocks of Llama, with the token embedding before and a norm after them.

    Choose it to build another head than `LlamaCausalLM`'s. Each block is a `DecoderBlock` of
    `GroupedQueryAttention` and `SwiGLU`.

    Args:
        config: `LlamaConfig`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers; `None` takes
            the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import LlamaBackbone, LlamaConfig
    >>> model = LlamaBackbone(LlamaConfig.from_preset("tiny"))
    >>> tokens = np.array([[3, 1, 4]])
    >>> inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    >>> tuple(model(inputs).shape)
    (1, 3, 64)

    Reference:

    - [The Llama 3 Herd of Models (Grattafiori et al., 2024)](https://arxiv.org/abs/2407.21783)
    """

    config_class: ClassVar[type] = LlamaConfig


@keras.saving.register_keras_serializable("keras_deepseek")
class LlamaCausalLM(DenseCausalLM):
    """Llama as a language model: logits of the next token at each position.

    Choose it for checkpoints of this architecture: DeepSeek-R1-Distill-Llama, DeepSeek-LLM,
    DeepSeek-Math and DeepSeek-Coder, and Llama 2 and 3 themselves.

    Args:
        config: `LlamaConfig`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers; `None` takes
            the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import LlamaCausalLM, LlamaConfig
    >>> model = LlamaCausalLM(LlamaConfig.from_preset("tiny"))
    >>> tokens = np.array([[3, 1, 4]])
    >>> inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    >>> tuple(model(inputs).shape)
    (1, 3, 256)

    Reference:

    - [The Llama 3 Herd of Models (Grattafiori et al., 2024)](https://arxiv.org/abs/2407.21783)
    """

    architectures: ClassVar[tuple[str, ...]] = LLAMA.architectures
    config_class: ClassVar[type] = LlamaConfig
    backbone_class: ClassVar[type] = LlamaBackbone


@keras.saving.register_keras_serializable("keras_deepseek")
class Qwen2Backbone(DenseDecoderBackbone):
    """The blocks of Qwen2, with the token embedding before and a norm after them.

    Choose it to build another head than `Qwen2CausalLM`'s. Each block is a `DecoderBlock` of
    `GroupedQueryAttention` and `SwiGLU`.

    Args:
        config: `Qwen2Config`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers; `None` takes
            the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import Qwen2Backbone, Qwen2Config
    >>> model = Qwen2Backbone(Qwen2Config.from_preset("tiny"))
    >>> tokens = np.array([[3, 1, 4]])
    >>> inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    >>> tuple(model(inputs).shape)
    (1, 3, 64)

    Reference:

    - [Qwen2 Technical Report (Qwen Team, 2024)](https://arxiv.org/abs/2407.10671)
    """

    config_class: ClassVar[type] = Qwen2Config


@keras.saving.register_keras_serializable("keras_deepseek")
class Qwen2CausalLM(DenseCausalLM):
    """Qwen2 as a language model: logits of the next token at each position.

    Choose it for checkpoints of this architecture: DeepSeek-R1-Distill-Qwen, whose smallest size
    fits any machine, and Qwen2 and Qwen2.5 themselves. The projections to queries, keys and values
    have a bias.

    Args:
        config: `Qwen2Config`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers; `None` takes
            the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import Qwen2CausalLM, Qwen2Config
    >>> model = Qwen2CausalLM(Qwen2Config.from_preset("tiny"))
    >>> tokens = np.array([[3, 1, 4]])
    >>> inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    >>> tuple(model(inputs).shape)
    (1, 3, 256)

    Reference:

    - [Qwen2 Technical Report (Qwen Team, 2024)](https://arxiv.org/abs/2407.10671)
    """

    architectures: ClassVar[tuple[str, ...]] = QWEN2.architectures
    config_class: ClassVar[type] = Qwen2Config
    backbone_class: ClassVar[type] = Qwen2Backbone


@keras.saving.register_keras_serializable("keras_deepseek")
class Qwen3Backbone(DenseDecoderBackbone):
    """The blocks of Qwen3, with the token embedding before and a norm after them.

    Choose it to build another head than `Qwen3CausalLM`'s. Each block is a `DecoderBlock` of
    `GroupedQueryAttention` and `SwiGLU`.

    Args:
        config: `Qwen3Config`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers; `None` takes
            the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import Qwen3Backbone, Qwen3Config
    >>> model = Qwen3Backbone(Qwen3Config.from_preset("tiny"))
    >>> tokens = np.array([[3, 1, 4]])
    >>> inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    >>> tuple(model(inputs).shape)
    (1, 3, 64)

    Reference:

    - [Qwen3 Technical Report (Qwen Team, 2025)](https://arxiv.org/abs/2505.09388)
    """

    config_class: ClassVar[type] = Qwen3Config


@keras.saving.register_keras_serializable("keras_deepseek")
class Qwen3CausalLM(DenseCausalLM):
    """Qwen3 as a language model: logits of the next token at each position.

    Choose it for checkpoints of this architecture: DeepSeek-R1-0528-Qwen3-8B, and the dense models
    of Qwen3. The heads of queries and keys are normalized.

    Args:
        config: `Qwen3Config`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers; `None` takes
            the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import Qwen3CausalLM, Qwen3Config
    >>> model = Qwen3CausalLM(Qwen3Config.from_preset("tiny"))
    >>> tokens = np.array([[3, 1, 4]])
    >>> inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    >>> tuple(model(inputs).shape)
    (1, 3, 256)

    Reference:

    - [Qwen3 Technical Report (Qwen Team, 2025)](https://arxiv.org/abs/2505.09388)
    """

    architectures: ClassVar[tuple[str, ...]] = QWEN3.architectures
    config_class: ClassVar[type] = Qwen3Config
    backbone_class: ClassVar[type] = Qwen3Backbone
