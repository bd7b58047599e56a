"""The example of keras.io whose model is trained by a `train_step` of its own and has no `call`.

The step is written once for each backend, as the guides "Customizing what happens in fit()" do;
what does not differ stands above.
"""

import keras
from keras import layers, ops

from example_tests.keras_io.example import Example, adam, random

LATENT, SIZE = 2, 8


class Sampling(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1337)

    def call(self, inputs):
        z_mean, z_log_var = inputs
        batch_size, dim = ops.shape(z_mean)
        epsilon = keras.random.normal(shape=(batch_size, dim), seed=self.seed_generator)
        return z_mean + ops.exp(0.5 * z_log_var) * epsilon


def make_encoder():
    inputs = keras.Input(shape=(SIZE, SIZE, 1))
    x = layers.Conv2D(6, 3, activation="relu", strides=2, padding="same")(inputs)
    x = layers.Conv2D(8, 3, activation="relu", strides=2, padding="same")(x)
    x = layers.Dense(8, activation="relu")(layers.Flatten()(x))
    z_mean = layers.Dense(LATENT, name="z_mean")(x)
    z_log_var = layers.Dense(LATENT, name="z_log_var")(x)
    z = Sampling()([z_mean, z_log_var])
    return keras.Model(inputs, [z_mean, z_log_var, z], name="encoder")


def make_decoder():
    inputs = keras.Input(shape=(LATENT,))
    x = layers.Dense(2 * 2 * 8, activation="relu")(inputs)
    x = layers.Reshape((2, 2, 8))(x)
    x = layers.Conv2DTranspose(8, 3, activation="relu", strides=2, padding="same")(x)
    x = layers.Conv2DTranspose(6, 3, activation="relu", strides=2, padding="same")(x)
    outputs = layers.Conv2DTranspose(1, 3, activation="sigmoid", padding="same")(x)
    return keras.Model(inputs, outputs, name="decoder")


class VAE(keras.Model):
    """What a variational autoencoder is on each backend, its step aside."""

    def __init__(self, encoder, decoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder = encoder
        self.decoder = decoder
        self.total_loss_tracker = keras.metrics.Mean(name="total_loss")
        self.reconstruction_loss_tracker = keras.metrics.Mean(name="reconstruction_loss")
        self.kl_loss_tracker = keras.metrics.Mean(name="kl_loss")
        self.built = True

    @property
    def metrics(self):
        return [self.total_loss_tracker, self.reconstruction_loss_tracker, self.kl_loss_tracker]

    def losses_of(self, data, z_mean, z_log_var, reconstruction):
        entropy = keras.losses.binary_crossentropy(data, reconstruction)
        reconstruction_loss = ops.mean(ops.sum(entropy, axis=(1, 2)))
        kl_loss = -0.5 * (1 + z_log_var - ops.square(z_mean) - ops.exp(z_log_var))
        kl_loss = ops.mean(ops.sum(kl_loss, axis=1))
        return reconstruction_loss + kl_loss, reconstruction_loss, kl_loss

    def track(self, losses):
        for metric, loss in zip(self.metrics, losses, strict=True):
            metric.update_state(loss)
        names = ("loss", "reconstruction_loss", "kl_loss")
        results = (metric.result() for metric in self.metrics)
        return dict(zip(names, results, strict=True))


class TensorFlowVAE(VAE):
    def train_step(self, data):
        import tensorflow as tf

        data = data[0] if isinstance(data, tuple) else data
        with tf.GradientTape() as tape:
            z_mean, z_log_var, z = self.encoder(data)
            losses = self.losses_of(data, z_mean, z_log_var, self.decoder(z))
        gradients = tape.gradient(losses[0], self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        return self.track(losses)


class TorchVAE(VAE):
    def train_step(self, data):
        import torch

        data = data[0] if isinstance(data, tuple) else data
        self.zero_grad()
        z_mean, z_log_var, z = self.encoder(data)
        losses = self.losses_of(data, z_mean, z_log_var, self.decoder(z))
        losses[0].backward()
        gradients = [weight.value.grad for weight in self.trainable_weights]
        with torch.no_grad():
            self.optimizer.apply(gradients, self.trainable_weights)
        return self.track(losses)


class JaxVAE(VAE):
    def compute_loss_and_updates(self, trainable, non_trainable, data):
        num_encoder_variables = len(self.encoder.trainable_variables)
        encoder_state = (
            trainable[:num_encoder_variables],
            non_trainable[: len(self.encoder.non_trainable_variables)],
        )
        (z_mean, z_log_var, z), updated = self.encoder.stateless_call(*encoder_state, data)
        decoder_state = trainable[num_encoder_variables:], non_trainable[len(updated) :]
        reconstruction, decoder_updated = self.decoder.stateless_call(*decoder_state, z)
        losses = self.losses_of(data, z_mean, z_log_var, reconstruction)
        return losses[0], (losses, [*updated, *decoder_updated])

    def train_step(self, state, data):
        import jax

        trainable, non_trainable, optimizer_variables, metrics_variables = state
        data = data[0] if isinstance(data, tuple) else data
        gradient_of = jax.value_and_grad(self.compute_loss_and_updates, has_aux=True)
        (_, (losses, non_trainable)), gradients = gradient_of(trainable, non_trainable, data)
        trainable, optimizer_variables = self.optimizer.stateless_apply(
            optimizer_variables, gradients, trainable
        )
        logs, updated, start = {}, [], 0
        for metric, loss in zip(self.metrics, losses, strict=True):
            end = start + len(metric.variables)
            metric_state = metric.stateless_update_state(metrics_variables[start:end], loss)
            name = "loss" if metric is self.total_loss_tracker else metric.name
            logs[name] = metric.stateless_result(metric_state)
            updated, start = [*updated, *metric_state], end
        return logs, (trainable, non_trainable, optimizer_variables, updated)


def vae():
    vae_class = {"jax": JaxVAE, "tensorflow": TensorFlowVAE, "torch": TorchVAE}[
        keras.backend.backend()
    ]
    return vae_class(make_encoder(), make_decoder())


def digits(num_rows):
    return random().random((num_rows, SIZE, SIZE, 1), "float32").round(), None


GENERATED = [
    random(num_rows).normal(size=(num_rows, LATENT)).astype("float32") for num_rows in (1, 3, 7)
]

VARIATIONAL_AUTOENCODER = Example(
    path="generative/vae",
    make_model=vae,
    make_data=digits,
    compile_arguments=lambda: {"optimizer": adam(3e-3)},
    exported_part=lambda model: model.decoder,
    fresh_inputs=lambda: GENERATED,
    has_own_step=True,
    # TensorFlow adds and multiplies one type alone: `keras.random` draws float32, and float32 is
    # what the decoder's sigmoid gives, to whose loss that of these means is added.
    half_options={"float32_layers": ["sampling*", "z_mean", "z_log_var"]},
)

EXAMPLES = [VARIATIONAL_AUTOENCODER]
