"""Where the weights of DeepSeek-V3.2 stand in a checkpoint of Hugging Face."""

from keras_deepseek.models.causal_lm import CausalLM
from keras_deepseek.models.checkpoints.checkpoint_entry import CheckpointEntry
from keras_deepseek.models.decoder.deepseek_checkpoint_map import deepseek_entries


def checkpoint_entries(model: CausalLM) -> list[CheckpointEntry]:
    """Returns which tensors each variable of a model comes from, and goes to.

    Args:
        model: `DeepSeekV32CausalLM`.
    """
    return deepseek_entries(model)
