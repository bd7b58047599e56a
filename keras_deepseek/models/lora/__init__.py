"""LoRA: a model is tuned by small matrices beside its kernels, which stay as they are.

`low_rank_adaptation.py` adds them to a model and merges them into its weights; two files write and
read them alone: `lora_weights.py` those of any model, `peft_adapter.py` as `peft` has them.
"""

from keras_deepseek.models.lora.lora_weights import load_lora_weights, save_lora_weights
from keras_deepseek.models.lora.low_rank_adaptation import enable_lora, merge_lora
from keras_deepseek.models.lora.peft_adapter import load_peft_adapter, save_peft_adapter

__all__ = [
    "enable_lora",
    "load_lora_weights",
    "load_peft_adapter",
    "merge_lora",
    "save_lora_weights",
    "save_peft_adapter",
]
