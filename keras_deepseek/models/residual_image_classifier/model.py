"""A residual network that classifies images, and its backbone."""

from typing import Any, ClassVar

import keras

from keras_deepseek.layers import (
    Activation,
    Add,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    GlobalAveragePooling2D,
    Input,
    MaxPooling2D,
)
from keras_deepseek.models.checkpoints.preset_model import PresetModel
from keras_deepseek.models.config_model import ConfigModel, read_policy
from keras_deepseek.models.residual_image_classifier.config import (
    RESIDUAL_IMAGE_CLASSIFIER,
    ResidualImageClassifierConfig,
)


@keras.saving.register_keras_serializable("keras_deepseek")
class ResidualBackbone(ConfigModel):
    """Stages of residual blocks that turn images into feature maps.

    Choose it to build another head than `ResidualImageClassifier`'s. Each block adds two 3x3
    convolutions to its input, `relu(x + norm(conv(relu(norm(conv(x))))))`. If a stage changes the
    shape, the shortcut is a 1x1 convolution of every second position. Batch normalization follows
    each convolution, so that inference can fold the two into one.

    Args:
        config: `ResidualImageClassifierConfig`.
        dtype: string, `keras.DTypePolicy` or `None`. The dtype policy of all layers; `None` takes
            the global one. Defaults to `None`.
        **kwargs: Arguments of `keras.Model`, such as `name`.

    Call arguments:
        inputs: Tensor of shape `(batch_size, height, width, channels)`, best scaled to [0, 1].

    Returns:
        A tensor of shape `(batch_size, height / 2**n, width / 2**n, filters_per_stage[-1])`, with
        sizes rounded up, for `n + 1` stages.

    Example:

    >>> from keras_deepseek.models import ResidualBackbone, ResidualImageClassifierConfig
    >>> config = ResidualImageClassifierConfig(10, filters_per_stage=(8,), blocks_per_stage=(1,))
    >>> ResidualBackbone(config).output_shape
    (None, None, None, 8)

    Reference:

    - [Deep Residual Learning (He et al., 2015)](https://arxiv.org/abs/1512.03385)
    """

    config_class: ClassVar[type] = ResidualImageClassifierConfig

    def __init__(
        self, config: ResidualImageClassifierConfig, *, dtype: Any = None, **kwargs: Any
    ) -> None:
        policy = read_policy(dtype)
        images = Input(config.image_shape, name="images")
        x = _convolve(images, config.filters_per_stage[0], "stem", policy)
        x = Activation("relu", dtype=policy, name="stem_relu")(x)
        stages = zip(config.filters_per_stage, config.blocks_per_stage, strict=True)
        for stage, (filters, num_blocks) in enumerate(stages):
            for block in range(num_blocks):
                strides = 2 if stage > 0 and block == 0 else 1
                x = _residual_block(x, filters, strides, f"stage_{stage}_block_{block}", policy)
        super().__init__(images, x, **kwargs)
        self.config = config
        self.layers_policy = policy


def _residual_block(x: Any, filters: int, strides: int, name: str, policy: Any) -> Any:
    shortcut = x
    if strides > 1:
        # Pooling replaces a strided 1x1 convolution. With fewer than 16 channels, PyTorch on a CPU
        # writes beyond its memory when it trains one (uxlfoundation/oneDNN issue 6035).
        shortcut = MaxPooling2D(
            1, strides, data_format="channels_last", dtype=policy, name=f"{name}_every_second"
        )(shortcut)
    if strides > 1 or x.shape[-1] != filters:
        shortcut = _convolve(shortcut, filters, f"{name}_shortcut", policy, kernel_size=1)
    x = _convolve(x, filters, f"{name}_1", policy, strides)
    x = Activation("relu", dtype=policy, name=f"{name}_1_relu")(x)
    x = _convolve(x, filters, f"{name}_2", policy)
    x = Add(dtype=policy, name=f"{name}_add")([x, shortcut])
    return Activation("relu", dtype=policy, name=f"{name}_relu")(x)


def _convolve(
    x: Any, filters: int, name: str, policy: Any, strides: int = 1, kernel_size: int = 3
) -> Any:
    x = Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        data_format="channels_last",
        use_bias=False,
        kernel_initializer="he_normal",
        dtype=policy,
        name=f"{name}_conv",
    )(x)
    # Keras's default momentum of 0.99 needs hundreds of steps to reach the training statistics.
    return BatchNormalization(axis=-1, momentum=0.9, dtype=policy, name=f"{name}_norm")(x)


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
