"""A residual network that classifies images."""

from typing import Any

import keras

from keras_deepseek.layers import Dense, Dropout, GlobalAveragePooling2D, Input
from keras_deepseek.models.checkpoints.preset_model import PresetModel
from keras_deepseek.models.residual_image_classifier.config import ResidualImageClassifierConfig
from keras_deepseek.models.residual_image_classifier.family import RESIDUAL_IMAGE_CLASSIFIER
from keras_deepseek.models.residual_image_classifier.residual_backbone import ResidualBackbone


@keras.saving.register_keras_serializable("keras_deepseek")
class ResidualImageClassifier(PresetModel):
    """A residual network that classifies images.

    Choose it for images of at least 8 by 8, of one size or of many; smaller ones work too. The
    features of a `ResidualBackbone` are averaged over the image, go through dropout, and are
    projected to the classes. The projection and its softmax compute in float32 under any policy:
    half precision makes probabilities and losses inaccurate.

    `save_to_preset` writes the fields of the config to `config.json`, and a tensor for each
    variable, named by its path, moving statistics included. `from_preset` reads them. It does not
    read checkpoints of `ResNetForImageClassification` of `transformers`, which is another model:
    that one starts with a strided 7x7 convolution and strided max pooling instead of a 3x3
    convolution, pads strided convolutions on both sides, and normalizes with an epsilon of 1e-5
    instead of 1e-3.

    Args:
        config: `ResidualImageClassifierConfig`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers except the
            last; `None` takes the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Call arguments:
        inputs: Tensor of shape `(batch_size, height, width, channels)`, best scaled to [0, 1].

    Returns:
        A float32 tensor of shape `(batch_size, num_classes)`: probabilities, or logits if the
        config's `activation` is `None`.

    Example:

    >>> import numpy as np
    >>> from keras_deepseek.models import ResidualImageClassifier, ResidualImageClassifierConfig
    >>> config = ResidualImageClassifierConfig(10, filters_per_stage=(8,), blocks_per_stage=(1,))
    >>> model = ResidualImageClassifier(config)
    >>> tuple(model(np.ones((2, 32, 32, 3), "float32")).shape)
    (2, 10)

    Reference:

    - [Deep Residual Learning (He et al., 2015)](https://arxiv.org/abs/1512.03385)
    """

    architectures = RESIDUAL_IMAGE_CLASSIFIER.architectures
    config_class = ResidualImageClassifierConfig
    float32_tensors = ("*/moving_mean", "*/moving_variance")  # A variance may exceed float16.

    def __init__(
        self, config: ResidualImageClassifierConfig, *, dtype: Any = None, **kwargs: Any
    ) -> None:
        backbone = ResidualBackbone(config, dtype=dtype, name="backbone")
        policy = backbone.layers_policy
        images = Input(config.image_shape, name="images")
        x = backbone(images)
        x = GlobalAveragePooling2D(data_format="channels_last", dtype=policy, name="pool")(x)
        x = Dropout(config.dropout, dtype=policy, name="dropout")(x)
        outputs = Dense(
            config.num_classes, activation=config.activation, dtype="float32", name="classes"
        )(x)
        super().__init__(images, outputs, **kwargs)
        self.backbone = backbone
        self.config = config
        self.layers_policy = backbone.layers_policy
