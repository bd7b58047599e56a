"""The declaration of the BERT family, and its presets by name.

The sizes are those of the paper and of "Well-Read Students Learn Better" (Turc et al., 2019).
"""

from typing import Any

from keras_deepseek.models.family import Family

_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_dim": 128, "num_layers": 2, "num_heads": 2, "intermediate_dim": 512},
    "mini": {"hidden_dim": 256, "num_layers": 4, "num_heads": 4, "intermediate_dim": 1024},
    "small": {"hidden_dim": 512, "num_layers": 4, "num_heads": 8, "intermediate_dim": 2048},
    "medium": {"hidden_dim": 512, "num_layers": 8, "num_heads": 8, "intermediate_dim": 2048},
    "base": {"hidden_dim": 768, "num_layers": 12, "num_heads": 12, "intermediate_dim": 3072},
    "large": {"hidden_dim": 1024, "num_layers": 24, "num_heads": 16, "intermediate_dim": 4096},
}

BERT = Family(
    model_type="bert",
    architectures=("BertForMaskedLM", "BertForPreTraining"),
    presets=_PRESETS,
)
