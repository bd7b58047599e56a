"""LoRA: fine-tuning by small matrices beside frozen kernels.

`low_rank_adaptation.py` adds them to a model and merges them into its weights. They are saved and
loaded alone in two formats: `lora_weights.py` for any model, `peft_adapter.py` in that of `peft`.
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
