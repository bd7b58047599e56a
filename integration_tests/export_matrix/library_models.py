"""The smallest of each family of `keras.applications`, and KerasHub's BERT; random weights."""

from collections.abc import Callable
from typing import Any

import keras

SMALLEST = {
    "vgg": ("VGG16", 32, {}),
    "resnet": ("ResNet50", 32, {}),
    "resnet_v2": ("ResNet50V2", 32, {}),
    "inception": ("InceptionV3", 75, {}),
    "inception_resnet": ("InceptionResNetV2", 75, {}),
    "xception": ("Xception", 71, {}),
    "mobilenet": ("MobileNet", 32, {"alpha": 0.25}),
    "mobilenet_v2": ("MobileNetV2", 32, {"alpha": 0.35}),
    "mobilenet_v3": ("MobileNetV3Small", 32, {"alpha": 0.75}),
    "densenet": ("DenseNet121", 32, {}),
    "nasnet": ("NASNetMobile", 32, {}),
    "efficientnet": ("EfficientNetB0", 32, {}),
    "efficientnet_v2": ("EfficientNetV2B0", 32, {}),
    "convnext": ("ConvNeXtTiny", 32, {}),
}
"""By family: the function of its smallest model, the side of the images, and further arguments."""
_GAINS = {"MobileNet": 4.0, "MobileNetV2": 3.0, "MobileNetV3Small": 4.0}
"""As Keras draws them, the weights of the MobileNets let nothing of an image through."""


def _builder(function: str, side: int, options: dict[str, Any]) -> Callable[[], keras.Model]:
    def build() -> keras.Model:
        make = getattr(keras.applications, function)
        model = make(weights=None, input_shape=(side, side, 3), classes=10, **options)
        for weight in model.weights:
            if function in _GAINS and weight.path.endswith("kernel"):
                weight.assign(_GAINS[function] * weight.value)
        return model

    return build


def kerashub_bert() -> keras.Model:
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=50,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=32,
    )
    return keras.Model(backbone.input, backbone.output)


MODELS = {
    "kerashub_bert": kerashub_bert,
    **{family: _builder(*arguments) for family, arguments in SMALLEST.items()},
}
