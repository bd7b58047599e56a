"""The list of all model families."""

from keras_deepseek.models.bert.config import BERT
from keras_deepseek.models.deepseek_v2.config import DEEPSEEK_V2
from keras_deepseek.models.deepseek_v3.config import DEEPSEEK_V3
from keras_deepseek.models.deepseek_v4.family import DEEPSEEK_V4
from keras_deepseek.models.deepseek_v32.config import DEEPSEEK_V32
from keras_deepseek.models.dense_decoder.families import LLAMA, QWEN2, QWEN3
from keras_deepseek.models.residual_image_classifier.config import RESIDUAL_IMAGE_CLASSIFIER
from keras_deepseek.models.sequential_recommender.config import SEQUENTIAL_RECOMMENDER

FAMILIES = (
    BERT,
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    DEEPSEEK_V32,
    DEEPSEEK_V4,
    LLAMA,
    QWEN2,
    QWEN3,
    RESIDUAL_IMAGE_CLASSIFIER,
    SEQUENTIAL_RECOMMENDER,
)
