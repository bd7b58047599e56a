"""Examples of keras.io that make images of images, and those with an unusual loss."""

import keras
import numpy as np
from keras import layers, ops

from example_tests.keras_io.example import Example, adam, random
from example_tests.keras_io.image_classification import SIZE, fresh_images, make_images

# --------------------------------------------------------------- oxford_pets_image_segmentation

NUM_KINDS = 3
SPARSE = keras.backend.backend() != "torch"
"""Keras 3.15 on PyTorch can't train by a sparse cross entropy of images, on a CPU: "grad_input must
be contiguous"."""


def small_unet():
    inputs = keras.Input(shape=(SIZE, SIZE, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("relu")(x)
    shortcut = x
    for filters in (8, 12):
        for _ in range(2):
            x = layers.Activation("relu")(x)
            x = layers.SeparableConv2D(filters, 3, padding="same")(x)
            x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        x = layers.add([x, layers.Conv2D(filters, 1, strides=2, padding="same")(shortcut)])
        shortcut = x
    for filters in (12, 8, 6):
        for _ in range(2):
            x = layers.Activation("relu")(x)
            x = layers.Conv2DTranspose(filters, 3, padding="same")(x)
            x = layers.BatchNormalization()(x)
        x = layers.UpSampling2D(2)(x)
        widened = layers.UpSampling2D(2)(shortcut)
        x = layers.add([x, layers.Conv2D(filters, 1, padding="same")(widened)])
        shortcut = x
    outputs = layers.Conv2D(NUM_KINDS, 3, activation="softmax", padding="same")(x)
    return keras.Model(inputs, outputs)


def pets_and_masks(num_rows):
    images = make_images(num_rows)[0].astype("float32")
    masks = (images.mean(-1, keepdims=True) // 86).astype("uint8")
    return images, masks if SPARSE else keras.utils.to_categorical(masks[..., 0], NUM_KINDS)


SEGMENTATION = Example(
    path="vision/oxford_pets_image_segmentation",
    make_model=small_unet,
    make_data=pets_and_masks,
    compile_arguments=lambda: {
        "optimizer": adam(1e-3),
        "loss": f"{'sparse_' if SPARSE else ''}categorical_crossentropy",
    },
    fresh_inputs=fresh_images,
)

# --------------------------------------------------------------- super_resolution_sub_pixel

UPSCALE = 3


class DepthToSpace(layers.Layer):
    def __init__(self, block_size):
        super().__init__()
        self.block_size = block_size

    def call(self, inputs):
        block = self.block_size
        batch, height, width, depth = ops.shape(inputs)
        depth = depth // block**2
        x = ops.reshape(inputs, [batch, height, width, block, block, depth])
        x = ops.transpose(x, [0, 1, 3, 2, 4, 5])
        return ops.reshape(x, [batch, height * block, width * block, depth])


def sub_pixel_cnn():
    convolution = {"activation": "relu", "kernel_initializer": "orthogonal", "padding": "same"}
    inputs = keras.Input(shape=(None, None, 1))
    x = layers.Conv2D(8, 5, **convolution)(inputs)
    x = layers.Conv2D(8, 3, **convolution)(x)
    x = layers.Conv2D(UPSCALE**2, 3, **convolution)(x)
    return keras.Model(inputs, DepthToSpace(UPSCALE)(x))


def small_and_large_images(num_rows):
    large = random().random((num_rows, 24, 24, 1), "float32")
    large = np.cumsum(np.cumsum(large - 0.5, 1), 2)
    large = (large - large.min()) / (large.max() - large.min())
    return np.ascontiguousarray(large[:, ::UPSCALE, ::UPSCALE]), large


SUPER_RESOLUTION = Example(
    path="vision/super_resolution_sub_pixel",
    make_model=sub_pixel_cnn,
    make_data=small_and_large_images,
    compile_arguments=lambda: {
        "optimizer": adam(1e-3),
        "loss": keras.losses.MeanSquaredError(),
    },
    fresh_inputs=lambda: [
        random(size).random((num_rows, size, size + 3, 1), "float32")
        for num_rows, size in ((1, 8), (3, 17), (7, 6))
    ],
    refusals={
        "onnx": {"jax": "__init__ of class DepthToSpace does not take"},
        "savedmodel": {"torch": "__init__ of class DepthToSpace does not take"},
    },
    reasons=dict.fromkeys(("onnx", "savedmodel"), "The example's layer takes no **kwargs."),
)

# ------------------------------------------------------------------------------- autoencoder


def autoencoder():
    inputs = layers.Input(shape=(SIZE, SIZE, 1))
    x = layers.Conv2D(6, (3, 3), activation="relu", padding="same")(inputs)
    x = layers.MaxPooling2D((2, 2), padding="same")(x)
    x = layers.Conv2D(6, (3, 3), activation="relu", padding="same")(x)
    x = layers.MaxPooling2D((2, 2), padding="same")(x)
    x = layers.Conv2DTranspose(6, (3, 3), strides=2, activation="relu", padding="same")(x)
    x = layers.Conv2DTranspose(6, (3, 3), strides=2, activation="relu", padding="same")(x)
    x = layers.Conv2D(1, (3, 3), activation="sigmoid", padding="same")(x)
    return keras.Model(inputs, x)


def clean_images(num_rows):
    images = make_images(num_rows, channels=1)[0].astype("float32") / 255
    return images, images


AUTOENCODER = Example(
    path="vision/autoencoder",
    make_model=autoencoder,
    make_data=clean_images,
    compile_arguments=lambda: {
        "optimizer": adam(3e-3),
        "loss": "binary_crossentropy",
    },
    fresh_inputs=lambda: fresh_images(1, scale=1 / 255),
)

# ------------------------------------------------------------------------------- captcha_ocr

NUM_CHARACTERS, NUM_SHOWN, WIDTH, HEIGHT = 5, 3, 24, 8


class CTCLayer(layers.Layer):
    """Puts the loss into the model; it hands on what was predicted."""

    def call(self, y_true, y_pred):
        batch_size, num_shown = ops.shape(y_true)
        frames = ops.shape(y_pred)[1]
        ones = ops.ones((batch_size,), dtype="int32")
        loss = ops.ctc_loss(
            ops.cast(y_true, "int32"),
            ops.log(y_pred + keras.config.epsilon()),
            num_shown * ones,
            frames * ones,
            mask_index=NUM_CHARACTERS,
        )
        self.add_loss(loss)
        return y_pred


def captcha_reader():
    image = layers.Input(shape=(WIDTH, HEIGHT, 1), name="image", dtype="float32")
    label = layers.Input(name="label", shape=(None,), dtype="float32")
    x = image
    for index, filters in enumerate((6, 8), 1):
        x = layers.Conv2D(
            filters, (3, 3), activation="relu", kernel_initializer="he_normal", padding="same",
            name=f"Conv{index}",
        )(x)  # fmt: skip
        x = layers.MaxPooling2D((2, 2), name=f"pool{index}")(x)
    x = layers.Reshape(target_shape=(WIDTH // 4, HEIGHT // 4 * 8), name="reshape")(x)
    x = layers.Dense(8, activation="relu", name="dense1")(x)
    x = layers.Dropout(0.2)(x)
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True, dropout=0.25))(x)
    x = layers.Bidirectional(layers.LSTM(6, return_sequences=True, dropout=0.25))(x)
    x = layers.Dense(NUM_CHARACTERS + 1, activation="softmax", name="dense2")(x)
    output = CTCLayer(name="ctc_loss")(label, x)
    return keras.Model(inputs=[image, label], outputs=output, name="ocr_model_v1")


def captchas(num_rows):
    generator = random()
    labels = generator.integers(0, NUM_CHARACTERS, (num_rows, NUM_SHOWN))
    columns = np.repeat(labels / NUM_CHARACTERS, WIDTH // NUM_SHOWN, axis=1)
    images = columns[:, :, None, None] + 0.1 * generator.random((num_rows, WIDTH, HEIGHT, 1))
    return {"image": images.astype("float32"), "label": labels}, None


CAPTCHA = Example(
    path="vision/captcha_ocr",
    make_model=captcha_reader,
    make_data=captchas,
    compile_arguments=lambda: {"optimizer": adam(3e-3)},
    exported_part=lambda model: keras.Model(model.input[0], model.get_layer("dense2").output),
    fresh_inputs=lambda: [captchas(num_rows)[0]["image"] for num_rows in (1, 3, 7)],
    refusals={"half precision": r"add_loss\(ops\.mean"},
    reasons={"half precision": "It is trained without micro-batches."},
)

EXAMPLES = [SEGMENTATION, SUPER_RESOLUTION, AUTOENCODER, CAPTCHA]
