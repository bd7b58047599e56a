"""The task of the family: from images to classes."""

from typing import Any

import keras

from keras_deepseek.layers import Dense, Dropout, GlobalAveragePooling2D, Input
from keras_deepseek.models.checkpoints.preset_model import PresetModel
from keras_deepseek.models.residual_image_classifier.config import ResidualImageClassifierConfig
from keras_deepseek.models.residual_image_classifier.family import RESIDUAL_IMAGE_CLASSIFIER
from keras_deepseek.models.residual_image_classifier.residual_backbone import ResidualBackbone


@keras.saving.register_keras_serializable("keras_deepseek")
class ResidualImageClassifier(PresetModel):
    """A residual network that gives each image a class.

    Choose it for images of 8 by 8 or more, of one size or of many; smaller ones are computed too.
    The features of a `ResidualBackbone` are averaged over the image, dropped out, and projected to
    the classes. The projection and its softmax compute in float32 under any policy: half precision
    blurs probabilities and losses.

    `save_to_preset` writes `config.json` by the config's fields and a tensor for each variable by
    its path, moving statistics too, and `from_preset` reads that. It computes something else than
    `ResNetForImageClassification` of `transformers`, whose checkpoints it does not read: that one
    begins with a 7x7 convolution and max pooling, both strided, where this one has a 3x3
    convolution, pads strided convolutions on both sides, and norms with an epsilon of 1e-5, not
    1e-3.

    Args:
        config: `ResidualImageClassifierConfig`.
        dtype: string, `keras.DTypePolicy` or `None`. The policy of all layers but the last; `None`
            takes the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Call arguments:
        inputs: Tensor of shape `(batch_size, height, width, channels)`, best scaled to [0, 1].

    Returns:
        A float32 tensor of shape `(batch_size, num_classes)`: probabilities, or logits where the
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
