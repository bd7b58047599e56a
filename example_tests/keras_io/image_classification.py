"""Examples of keras.io that classify images."""

import keras
from keras import layers, ops

from example_tests.keras_io.example import EPSILON, Example, adam, random

SIZE, NUM_CLASSES = 16, 3


def make_images(num_rows, channels=3, seed=0):
    """Returns images of whole numbers from 0 to 255, the brighter the higher the class."""
    generator = random(seed)
    classes = generator.permutation(num_rows) % NUM_CLASSES
    images = generator.integers(0, 128, (num_rows, SIZE, SIZE, channels))
    return (images + 60 * classes[:, None, None, None]).astype("uint8"), classes


def fresh_images(channels=3, dtype="float32", scale=1.0):
    """Returns batches of sizes that no training here has."""
    batches = [make_images(num_rows, channels, num_rows)[0] for num_rows in (1, 3, 7)]
    return [(images * scale).astype(dtype) for images in batches]


# ------------------------------------------------------------------------------ mnist_convnet


def mnist_convnet():
    return keras.Sequential(
        [
            keras.Input(shape=(SIZE, SIZE, 1)),
            layers.Conv2D(6, kernel_size=(3, 3), activation="relu"),
            layers.MaxPooling2D(pool_size=(2, 2)),
            layers.Conv2D(8, kernel_size=(3, 3), activation="relu"),
            layers.MaxPooling2D(pool_size=(2, 2)),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(NUM_CLASSES, activation="softmax"),
        ]
    )


def mnist_data(num_rows):
    images, classes = make_images(num_rows, channels=1)
    return images.astype("float32") / 255, keras.utils.to_categorical(classes, NUM_CLASSES)


MNIST_CONVNET = Example(
    path="vision/mnist_convnet",
    make_model=mnist_convnet,
    make_data=mnist_data,
    compile_arguments=lambda: {
        "loss": "categorical_crossentropy",
        "optimizer": adam(3e-3),
        "metrics": ["accuracy"],
    },
    fresh_inputs=lambda: fresh_images(1, scale=1 / 255),
)

# ---------------------------------------------------------- image_classification_from_scratch


def small_xception():
    inputs = keras.Input(shape=(SIZE, SIZE, 3))
    x = layers.Rescaling(1.0 / 255)(inputs)
    x = layers.Conv2D(8, 3, strides=2, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("relu")(x)
    shortcut = x
    for size in (8, 12):
        for _ in range(2):
            x = layers.Activation("relu")(x)
            x = layers.SeparableConv2D(size, 3, padding="same")(x)
            x = layers.BatchNormalization()(x)
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        projected = layers.Conv2D(size, 1, strides=2, padding="same")(shortcut)
        x = layers.add([x, projected])
        shortcut = x
    x = layers.SeparableConv2D(16, 3, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(0.25)(x)
    outputs = layers.Dense(1, activation=None)(x)
    return keras.Model(inputs, outputs)


def cats_and_dogs(num_rows):
    images, classes = make_images(num_rows)
    return images.astype("float32"), (classes == 0).astype("float32")[:, None]


FROM_SCRATCH = Example(
    path="vision/image_classification_from_scratch",
    make_model=small_xception,
    make_data=cats_and_dogs,
    compile_arguments=lambda: {
        "optimizer": adam(3e-3),
        "loss": keras.losses.BinaryCrossentropy(from_logits=True),
        "metrics": [keras.metrics.BinaryAccuracy(name="acc")],
    },
    fresh_inputs=fresh_images,
)

# --------------------------------------------- image_classification_with_vision_transformer


class Patches(layers.Layer):
    def __init__(self, patch_size, **kwargs):
        super().__init__(**kwargs)
        self.patch_size = patch_size

    def call(self, images):
        batch_size, height, width, channels = ops.shape(images)
        num_patches = (height // self.patch_size) * (width // self.patch_size)
        patches = ops.image.extract_patches(images, size=self.patch_size)
        patch_dim = self.patch_size * self.patch_size * channels
        return ops.reshape(patches, (batch_size, num_patches, patch_dim))

    def get_config(self):
        return {**super().get_config(), "patch_size": self.patch_size}


class PatchEncoder(layers.Layer):
    def __init__(self, num_patches, projection_dim, **kwargs):
        super().__init__(**kwargs)
        self.num_patches = num_patches
        self.projection = layers.Dense(units=projection_dim)
        self.position_embedding = layers.Embedding(num_patches, projection_dim)

    def call(self, patch):
        positions = ops.expand_dims(ops.arange(start=0, stop=self.num_patches, step=1), axis=0)
        return self.projection(patch) + self.position_embedding(positions)

    def get_config(self):
        config = {"num_patches": self.num_patches, "projection_dim": self.projection.units}
        return {**super().get_config(), **config}


def augmentation():
    steps = [
        layers.Normalization(),
        layers.Resizing(24, 24),
        layers.RandomFlip("horizontal"),
        layers.RandomRotation(factor=0.02),
        layers.RandomZoom(height_factor=0.2, width_factor=0.2),
    ]
    augmentation = keras.Sequential(steps, name="data_augmentation")
    augmentation.layers[0].adapt(make_images(8)[0])
    return augmentation


def mlp(x, hidden_units, dropout_rate):
    for units in hidden_units:
        x = layers.Dense(units, activation=keras.activations.gelu)(x)
        x = layers.Dropout(dropout_rate)(x)
    return x


def vision_transformer():
    projection_dim, patch_size = 8, 6
    inputs = keras.Input(shape=(SIZE, SIZE, 3))
    patches = Patches(patch_size)(augmentation()(inputs))
    encoded = PatchEncoder((24 // patch_size) ** 2, projection_dim)(patches)
    for _ in range(2):
        x1 = layers.LayerNormalization(epsilon=1e-6)(encoded)
        attended = layers.MultiHeadAttention(num_heads=2, key_dim=projection_dim, dropout=0.1)(
            x1, x1
        )
        x2 = layers.Add()([attended, encoded])
        x3 = layers.LayerNormalization(epsilon=1e-6)(x2)
        x3 = mlp(x3, [2 * projection_dim, projection_dim], 0.1)
        encoded = layers.Add()([x3, x2])
    representation = layers.LayerNormalization(epsilon=1e-6)(encoded)
    representation = layers.Flatten()(representation)
    representation = layers.Dropout(0.5)(representation)
    features = mlp(representation, [32, 16], 0.5)
    return keras.Model(inputs, layers.Dense(NUM_CLASSES)(features))


VISION_TRANSFORMER = Example(
    path="vision/image_classification_with_vision_transformer",
    make_model=vision_transformer,
    make_data=make_images,
    compile_arguments=lambda: {
        "optimizer": keras.optimizers.AdamW(3e-3, weight_decay=1e-4, epsilon=EPSILON),
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": [
            keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
            keras.metrics.SparseTopKCategoricalAccuracy(2, name="top-2-accuracy"),
        ],
    },
    fresh_inputs=lambda: fresh_images(dtype="uint8"),
)

# ------------------------------------------------------------------- mlp_image_classification


class MLPMixerLayer(layers.Layer):
    def __init__(self, num_patches, hidden_units, dropout_rate, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mlp1 = keras.Sequential(
            [layers.Dense(num_patches, "gelu"), layers.Dense(num_patches), layers.Dropout(0.2)]
        )
        self.mlp2 = keras.Sequential(
            [
                layers.Dense(hidden_units, "gelu"),
                layers.Dense(hidden_units),
                layers.Dropout(dropout_rate),
            ]
        )
        self.normalize = layers.LayerNormalization(epsilon=1e-6)

    def call(self, inputs):
        x = self.normalize(inputs)
        mixed = self.mlp1(ops.transpose(x, axes=(0, 2, 1)))
        x = ops.transpose(mixed, axes=(0, 2, 1)) + inputs
        return x + self.mlp2(self.normalize(x))


class FNetLayer(layers.Layer):
    def __init__(self, embedding_dim, dropout_rate, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.ffn = keras.Sequential(
            [
                layers.Dense(embedding_dim, activation="gelu"),
                layers.Dropout(dropout_rate),
                layers.Dense(embedding_dim),
            ]
        )
        self.normalize1 = layers.LayerNormalization(epsilon=1e-6)
        self.normalize2 = layers.LayerNormalization(epsilon=1e-6)

    def call(self, inputs):
        imaginary = ops.zeros_like(inputs)
        x = ops.fft2((inputs, imaginary))[0] + inputs
        x = self.normalize1(x)
        return self.normalize2(x + self.ffn(x))


class GMLPLayer(layers.Layer):
    def __init__(self, num_patches, embedding_dim, dropout_rate, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.channel_projection1 = keras.Sequential(
            [layers.Dense(embedding_dim * 2, "gelu"), layers.Dropout(dropout_rate)]
        )
        self.channel_projection2 = layers.Dense(embedding_dim)
        self.spatial_projection = layers.Dense(num_patches, bias_initializer="Ones")
        self.normalize1 = layers.LayerNormalization(epsilon=1e-6)
        self.normalize2 = layers.LayerNormalization(epsilon=1e-6)

    def call(self, inputs):
        x = self.channel_projection1(self.normalize1(inputs))
        u, v = ops.split(x, indices_or_sections=2, axis=2)
        v = ops.transpose(self.normalize2(v), axes=(0, 2, 1))
        v = ops.transpose(self.spatial_projection(v), axes=(0, 2, 1))
        return inputs + self.channel_projection2(u * v)


def all_mlp():
    embedding_dim, patch_size = 8, 6
    num_patches = (24 // patch_size) ** 2
    blocks = keras.Sequential(
        [
            MLPMixerLayer(num_patches, embedding_dim, 0.2),
            FNetLayer(embedding_dim, 0.2, name="fnet", dtype="float32"),
            GMLPLayer(num_patches, embedding_dim, 0.2),
        ]
    )
    inputs = keras.Input(shape=(SIZE, SIZE, 3))
    x = layers.Dense(embedding_dim)(Patches(patch_size)(augmentation()(inputs)))
    x = blocks(x)
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dropout(rate=0.2)(x)
    return keras.Model(inputs, layers.Dense(NUM_CLASSES)(x))


MLP = Example(
    path="vision/mlp_image_classification",
    make_model=all_mlp,
    make_data=make_images,
    compile_arguments=lambda: {
        "optimizer": keras.optimizers.AdamW(5e-3, weight_decay=1e-4, epsilon=EPSILON),
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "metrics": [keras.metrics.SparseCategoricalAccuracy(name="acc")],
    },
    fresh_inputs=lambda: fresh_images(dtype="uint8"),
    half_options={"float32_layers": ["fnet"]},  # No framework has an FFT in bfloat16.
)

EXAMPLES = [MNIST_CONVNET, FROM_SCRATCH, VISION_TRANSFORMER, MLP]
