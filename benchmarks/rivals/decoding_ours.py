"""The same model here, as it is or with a cache of all heads' keys and values; see `decoding.py`.

KERAS_BACKEND=jax python benchmarks/rivals/decoding_ours.py FOLDER latent
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_deepseek.layers import MultiHeadLatentAttention
from keras_deepseek.layers.attention.key_value_cache import append_to_cache, make_attention_mask
from keras_deepseek.layers.last_tokens import start_of_last
from keras_deepseek.models import DeepSeekV3CausalLM, DeepSeekV3Config
from keras_deepseek.models.checkpoints.weights_folder import WeightsFolder
from keras_deepseek.models.checkpoints.weights_reader import read_weights


def draw_prompts(batch_size: int, context: int, vocabulary_size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(1, vocabulary_size, (batch_size, context))


class ExpandedAttention(MultiHeadLatentAttention):
    """The same numbers, with keys and values of all heads in the cache."""

    @property
    def _cache_entries(self) -> dict[str, tuple[int, ...]]:
        key_dim = self.nope_head_dim + self.rope_head_dim
        return {"key": (self.num_heads, key_dim), "value": (self.num_heads, self.value_head_dim)}

    def call(
        self,
        inputs,
        mask=None,
        positions=None,
        cache=None,
        cache_index=None,
        num_outputs=None,
        **_: Any,
    ):
        turn = {"positions": positions, "start_index": cache_index}
        compressed = self.query_norm(self.query_down(inputs))
        queries, keys = self._project(inputs, compressed, turn, num_outputs)
        latent = keys["latent"]
        rotary = ops.repeat(ops.expand_dims(keys["rotary_key"], 2), self.num_heads, axis=2)
        new = {
            "key": ops.concatenate([self.key_up(latent), rotary], axis=-1),
            "value": self.value_up(latent),
        }
        cache = append_to_cache(cache, cache_index, new, mask)
        visible = make_attention_mask(
            queries["nope"].shape[1],
            cache["mask"].shape[1],
            key_mask=cache["mask"],
            start_index=start_of_last(inputs, cache_index, num_outputs),
            use_causal_mask=True,
        )
        query = ops.concatenate([queries["nope"], queries["rope"]], axis=-1)
        scores = ops.einsum("bthk,bshk->bhts", query, ops.convert_to_tensor(cache["key"]))
        weights = ops.softmax(ops.where(visible[:, None], scores, -1e9), axis=-1)
        heads = ops.einsum("bhts,bshv->bthv", weights, ops.convert_to_tensor(cache["value"]))
        return self.output_projection(heads), cache


def generate(model: Any, batch_size: int, context: int, new_tokens: int, seed: int) -> dict:
    """Returns process seconds of the prompt and of a further token, and the tokens."""
    vocabulary_size = model.backbone.token_embedding.input_dim
    prompts = draw_prompts(batch_size, context, vocabulary_size, seed)
    start = time.process_time()
    stream = model.stream(prompts, max_new_tokens=new_tokens + 1, stop_token_ids=None)
    tokens = [next(stream)]
    first = time.process_time()
    tokens += list(stream)
    decode = (time.process_time() - first) / new_tokens
    return {"prefill": first - start, "decode": decode, "tokens": tokens}


def read_facts(model: Any) -> dict[str, Any]:
    """Returns the bytes of a token in the cache, and versions."""
    cache = model.make_cache(1, 128)
    sizes = [ops.convert_to_numpy(x).nbytes for layer in cache for x in layer.values()]
    backend = keras.backend.backend()
    version = sys.modules[backend].__version__
    return {"cache_bytes_per_token": sum(sizes) / 128, "keras": keras.__version__, backend: version}


def load_model(folder: Path) -> DeepSeekV3CausalLM:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = DeepSeekV3CausalLM(DeepSeekV3Config.from_checkpoint_config(config))
    read_weights(WeightsFolder(folder), model.checkpoint_entries())
    return model


def main() -> None:
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(1)
    model = None
    for line in sys.stdin:
        if model is None:  # Asked for only once the checkpoint is there.
            model = load_model(Path(sys.argv[1]))
            if sys.argv[2] == "expanded":
                for layer in model.backbone.transformer_layers:
                    layer.attention.__class__ = ExpandedAttention
        question = json.loads(line)
        is_fact = question.pop("what", None)
        answer = read_facts(model) if is_fact else generate(model, **question)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
