"""The base class of causal language models, which predict the next token."""

from collections.abc import Iterator, Sequence
from typing import Any

from keras import ops

from keras_deepseek.checks import check_boolean, check_integer
from keras_deepseek.layers import MultiTokenPrediction
from keras_deepseek.layers.attention.key_value_cache import Cache
from keras_deepseek.models.checkpoints.preset_model import PresetModel
from keras_deepseek.models.decoder.decoder_backbone import DecoderBackbone, make_token_inputs
from keras_deepseek.models.decoder.output_layers import MultiTokenLoss, TokenLogits
from keras_deepseek.models.generation.generation import GenerationOptions, Generator, takes_options


class CausalLM(PresetModel):
    """A language model: a backbone, and logits from its token embedding.

    All families of language models derive from it. Choose it directly to make a task from a
    backbone of your own. With `multi_token_prediction`, training adds the loss of modules that
    predict tokens further ahead. The outputs stay those of the model itself.

    Args:
        backbone: `DecoderBackbone`. It makes the hidden states.
        multi_token_prediction: `MultiTokenPrediction` or `None`. Modules that share the embedding
            of the backbone. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import CausalLM, DeepSeekV2Backbone, DeepSeekV2Config
    >>> model = CausalLM(DeepSeekV2Backbone(DeepSeekV2Config.from_preset("tiny")))
    >>> cache = model.make_cache(batch_size=1, max_length=8)
    >>> logits, _, cache = model.call_with_cache(np.array([[3, 1, 4]]), cache, 0)
    >>> logits, _, cache = model.call_with_cache(np.array([[1]]), cache, 3)
    >>> tuple(logits.shape)
    (1, 1, 256)
    """

    def __init__(
        self,
        backbone: DecoderBackbone,
        *,
        multi_token_prediction: MultiTokenPrediction | None = None,
        **kwargs: Any,
    ) -> None:
        inputs = make_token_inputs()
        token_logits = TokenLogits(
            backbone.token_embedding, dtype=backbone.layers_policy, name="logits"
        )
        hidden_states, states = self.call_backbone(backbone, inputs)
        logits = token_logits(hidden_states)
        if multi_token_prediction is not None:
            loss = MultiTokenLoss(multi_token_prediction, name="multi_token_loss")
            mask = ops.not_equal(inputs["padding_mask"], 0)
            logits = loss(logits, states, inputs["token_ids"], mask=mask)
        super().__init__(inputs, logits, **kwargs)
        self.backbone = backbone
        self.config = backbone.config
        self.layers_policy = backbone.layers_policy
        self.token_logits = token_logits
        self.multi_token_prediction = multi_token_prediction
        self._generator: Generator | None = None

    @staticmethod
    def call_backbone(backbone: DecoderBackbone, inputs: Any) -> tuple[Any, Any]:
        """Returns hidden states, and the states from which further tokens are predicted.

        Args:
            backbone: `DecoderBackbone`.
            inputs: dict of tensors. The inputs of the model.
        """
        hidden_states = backbone(inputs)
        return hidden_states, hidden_states

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Returns the logits of the next token at each position.

        Args:
            inputs: dict of `"token_ids"`, integers of shape `(batch_size, length)`, and
                `"padding_mask"` of the same shape, 0 for padding.
            training: boolean or `None`. Whether the model trains. `None` takes the value of the
                surrounding call. Defaults to `None`.
            mask: As in `keras.Model`; `"padding_mask"` says what is padding. Defaults to `None`.

        Returns:
            A tensor of shape `(batch_size, length, vocabulary_size)`, float32 or better. It carries
            the mask, so that Keras losses leave padding out.

        Raises:
            InvalidInputError: Token ids are floats, or sequences are longer than the config's
                `max_length`.
        """
        return super().call(inputs, training=training, mask=mask)

    def make_cache(self, batch_size: int, max_length: int) -> list[Cache]:
        """Returns the empty caches of all layers, for `call_with_cache`.

        Args:
            batch_size: integer. Number of sequences.
            max_length: integer. Number of tokens that fit into the cache, padding included.

        Raises:
            InvalidInputError: `max_length` is not a positive integer, or `batch_size` is negative.
        """
        return self.backbone.make_cache(batch_size, max_length)

    def call_with_cache(
        self,
        token_ids: Any,
        cache: Sequence[Cache],
        cache_index: Any,
        padding_mask: Any = None,
        positions: Any = None,
        num_logits: int | None = None,
        num_hidden_states: int | None = None,
    ) -> tuple[Any, Any, list[Cache]]:
        """Returns logits and hidden states of further tokens, and the updated caches.

        Args:
            token_ids: Integer tensor of shape `(batch_size, length)`.
            cache: list of dicts, from `make_cache` or an earlier call.
            cache_index: integer, or integer tensor, scalar or of shape `(batch_size,)`. The slot of
                the first token, of all sequences or of each. With one each, sequences may begin,
                wait and end by themselves: their slots are their positions.
            padding_mask: Tensor of the shape of `token_ids`, 0 for padding, or `None` for no
                padding. A sequence that waits has only padding. Defaults to `None`.
            positions: Integer tensor of the shape of `token_ids`, or `None` to count slots.
                Defaults to `None`.
            num_logits: integer or `None`. Number of last tokens to compute logits for; `None` is
                all. Defaults to `None`.
            num_hidden_states: integer or `None`. Number of last tokens to return hidden states for,
                which also limits the logits; `None` is all. The last layer skips the other tokens
                where it can. Defaults to `None`.

        Returns:
            Three values: logits of shape `(batch_size, num_logits, vocabulary_size)`, hidden states
                of shape `(batch_size, num_hidden_states, dim)`, and a list of dicts.

        Raises:
            InvalidInputError: The token ids are not integers, the caches are full or belong to
                another model, or `num_logits` or `num_hidden_states` is not positive.
        """
        hidden_states, written = self.backbone.call_with_cache(
            token_ids, cache, cache_index, padding_mask, positions, num_hidden_states
        )
        last = hidden_states
        if num_logits is not None:
            last = hidden_states[:, -check_integer("num_logits", num_logits) :]
        return self.token_logits(last), hidden_states, written

    @takes_options
    def generate(  # noqa: D417 - `takes_options` names the others
        self,
        inputs: Any,
        max_length: int | None = None,
        *,
        strip_prompt: bool = False,
        return_log_probabilities: bool = False,
        **options: Any,
    ) -> Any:
        """Continues prompts, and returns them with the new tokens.

        The prompts of a batch may have different lengths. A row ends with a stop token or at its
        maximum length. Once at most half of the rows are left, the others leave the batch and cost
        nothing. On TensorFlow and JAX, the first call with prompts of about the same length, or
        with as many rows left, compiles.

        Args:
            inputs: A string, or a list or array of token ids. For a batch, a list of either, or an
                array of two axes. Strings need `model.tokenizer`.
            max_length: integer or `None`. The most tokens of a row, prompt included; `None` is as
                many as the model takes. Defaults to `None`.
            max_new_tokens: integer or `None`. The most new tokens of a row. Defaults to `None`.
            stop_token_ids: integer, list of integers, one list of integers for each row, `None`, or
                `"auto"` for the end tokens of the model or its tokenizer. Defaults to `"auto"`.
            strip_prompt: boolean. Whether to leave the prompts out of the result. Defaults to
                `False`.
            sampler: `Sampler`, `"greedy"`, `"random"`, or `None` for greedy. Defaults to `None`.
            seed: integer or `None`. The same seed gives the same tokens again, within a backend.
                The tokens of a row depend on its index and not on the other rows, unless these
                change the rounding of its logits. Defaults to `None`.
            use_drafts: boolean. Whether to use speculative decoding: the modules of
                `multi_token_prediction` draft tokens, and the model checks several at once. Greedy
                tokens are the same, and sampled ones have the same distribution, in fewer steps.
                Defaults to `False`.
            return_log_probabilities: boolean. Whether to return the log-probabilities of the new
                tokens too, as the model gives them before the sampler changes them. Defaults to
                `False`.

        Returns:
            A string or a list of token ids, as the prompt was, or a list of these for a batch.
            Token ids end with the stop token, if there was one; a string does not contain it. With
            `return_log_probabilities`, a pair of this and a float32 array of a row's new tokens, or
            a list of arrays.

        Raises:
            InvalidInputError: A prompt is empty, longer than the model or `max_length` allows, or
                text without a tokenizer; or the model's logits are not finite.
            NotSupportedError: `use_drafts` is set, and the model has no modules for it, or a cache
                that can't remove tokens that were not kept.
        """
        generator = self._get_generator()
        request = generator.request(
            inputs,
            GenerationOptions(max_length=max_length, **options),
            return_log_probabilities=return_log_probabilities,
        )
        return generator.generate(request, strip_prompt=check_boolean("strip_prompt", strip_prompt))

    @takes_options
    def stream(  # noqa: D417 - as above
        self, inputs: Any, max_length: int | None = None, **options: Any
    ) -> Iterator[Any]:
        """Returns an iterator over what `generate` returns, token by token, while it is computed.

        Leave the loop to stop early. Errors in the arguments are raised at once.

        Args:
            inputs: As for `generate`.
            max_length: As for `generate`. Defaults to `None`.
            max_new_tokens: As for `generate`. Defaults to `None`.
            stop_token_ids: As for `generate`. Defaults to `"auto"`.
            sampler: As for `generate`. Defaults to `None`.
            seed: As for `generate`. Defaults to `None`.
            use_drafts: As for `generate`. Tokens then come in bursts. Defaults to `False`.

        Returns:
            An iterator. For one prompt it yields token ids, or pieces of text; a piece is empty
            while a character is not complete. For a batch it yields lists of these, with `None` for
            a row that has ended.

        Raises:
            InvalidInputError: As for `generate`.
            NotSupportedError: As for `generate`.
        """
        generator = self._get_generator()
        request = generator.request(inputs, GenerationOptions(max_length=max_length, **options))
        return generator.stream(request)

    def _get_generator(self) -> Generator:
        if self._generator is None:
            self._generator = Generator(self)
        return self._generator
