"""The example of keras.io with two optimizers of its own: a GAN, its step once for each backend."""

import keras
from keras import layers, ops

from example_tests.keras_io.example import Example, adam, random

SIZE, LATENT = 8, 6


def make_discriminator():
    return keras.Sequential(
        [
            keras.Input(shape=(SIZE, SIZE, 3)),
            layers.Conv2D(6, kernel_size=4, strides=2, padding="same"),
            layers.LeakyReLU(negative_slope=0.2),
            layers.Conv2D(8, kernel_size=4, strides=2, padding="same"),
            layers.LeakyReLU(negative_slope=0.2),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(1),
        ],
        name="discriminator",
    )


def make_generator():
    return keras.Sequential(
        [
            keras.Input(shape=(LATENT,)),
            layers.Dense(2 * 2 * 8),
            layers.Reshape((2, 2, 8)),
            layers.Conv2DTranspose(8, kernel_size=4, strides=2, padding="same"),
            layers.LeakyReLU(negative_slope=0.2),
            layers.Conv2DTranspose(8, kernel_size=4, strides=2, padding="same"),
            layers.LeakyReLU(negative_slope=0.2),
            layers.Conv2D(3, kernel_size=5, padding="same", activation="sigmoid"),
        ],
        name="generator",
    )


class GAN(keras.Model):
    """What a GAN is on each backend, its step aside."""

    def __init__(self, discriminator, generator, latent_dim):
        super().__init__()
        self.discriminator = discriminator
        self.generator = generator
        self.latent_dim = latent_dim
        self.seed_generator = keras.random.SeedGenerator(1337)
        self.d_loss_metric = keras.metrics.Mean(name="d_loss")
        self.g_loss_metric = keras.metrics.Mean(name="g_loss")
        self.built = True

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        super().compile()
        self.d_optimizer = d_optimizer
        self.g_optimizer = g_optimizer
        self.loss_fn = loss_fn

    @property
    def metrics(self):
        return [self.d_loss_metric, self.g_loss_metric]

    def draw_latent(self, images):
        shape = (ops.shape(images)[0], self.latent_dim)
        return keras.random.normal(shape, seed=self.seed_generator)

    def noisy_labels(self, images):
        """Ones for what was generated, zeros for real images, and some noise."""
        batch_size = ops.shape(images)[0]
        labels = ops.concatenate([ops.ones((batch_size, 1)), ops.zeros((batch_size, 1))], axis=0)
        return labels + 0.05 * keras.random.uniform(ops.shape(labels), seed=self.seed_generator)

    def track(self, d_loss, g_loss):
        self.d_loss_metric.update_state(d_loss)
        self.g_loss_metric.update_state(g_loss)
        return {metric.name: metric.result() for metric in self.metrics}


class TensorFlowGAN(GAN):
    def train_step(self, real):
        import tensorflow as tf

        real = real[0] if isinstance(real, tuple) else real
        combined = ops.concatenate([self.generator(self.draw_latent(real)), real], axis=0)
        labels = self.noisy_labels(real)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(combined))
        weights = self.discriminator.trainable_weights
        gradients = tape.gradient(d_loss, weights)
        self.d_optimizer.apply_gradients(zip(gradients, weights, strict=True))
        latent = self.draw_latent(real)
        misleading = ops.zeros((ops.shape(real)[0], 1))
        with tf.GradientTape() as tape:
            g_loss = self.loss_fn(misleading, self.discriminator(self.generator(latent)))
        weights = self.generator.trainable_weights
        gradients = tape.gradient(g_loss, weights)
        self.g_optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return self.track(d_loss, g_loss)


class TorchGAN(GAN):
    def train_step(self, real):
        import torch

        real = real[0] if isinstance(real, tuple) else real
        combined = ops.concatenate([self.generator(self.draw_latent(real)), real], axis=0)
        labels = self.noisy_labels(real)
        self.zero_grad()
        d_loss = self.loss_fn(labels, self.discriminator(combined))
        d_loss.backward()
        weights = self.discriminator.trainable_weights
        gradients = [weight.value.grad for weight in weights]
        with torch.no_grad():
            self.d_optimizer.apply(gradients, weights)
        self.zero_grad()
        misleading = ops.zeros((ops.shape(real)[0], 1))
        g_loss = self.loss_fn(
            misleading, self.discriminator(self.generator(self.draw_latent(real)))
        )
        g_loss.backward()
        weights = self.generator.trainable_weights
        gradients = [weight.value.grad for weight in weights]
        with torch.no_grad():
            self.g_optimizer.apply(gradients, weights)
        return self.track(d_loss, g_loss)


class JaxGAN(GAN):
    """Its optimizers' variables are among the model's own, so that Keras threads them through."""

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        super().compile(d_optimizer, g_optimizer, loss_fn)
        d_optimizer.build(self.discriminator.trainable_variables)
        g_optimizer.build(self.generator.trainable_variables)
        self.d_state = list(d_optimizer.variables)
        self.g_state = list(g_optimizer.variables)

    def train_step(self, state, real):
        import jax

        trainable, non_trainable, optimizer_variables, metrics_variables = state
        real = real[0] if isinstance(real, tuple) else real
        values = {}

        def put(variables, updated):
            values.update(zip(map(id, variables), updated, strict=True))

        def of(variables):
            return [values[id(variable)] for variable in variables]

        def call(model, trainable, x):
            return model.stateless_call(trainable, of(model.non_trainable_variables), x)

        put(self.trainable_variables, trainable)
        put(self.non_trainable_variables, non_trainable)
        discriminator, generator, seed = (
            self.discriminator,
            self.generator,
            self.seed_generator.state,
        )
        with keras.StatelessScope([(seed, *of([seed]))]) as scope:
            latent, labels = self.draw_latent(real), self.noisy_labels(real)
            latent_of_generator = self.draw_latent(real)
        put([seed], [scope.get_current_value(seed)])
        generated, _ = call(generator, of(generator.trainable_variables), latent)
        combined = ops.concatenate([generated, real], axis=0)

        def d_loss_of(trainable):
            predicted, updated = call(discriminator, trainable, combined)
            return self.loss_fn(labels, predicted), updated

        def g_loss_of(trainable):
            generated, updated = call(generator, trainable, latent_of_generator)
            predicted, _ = call(discriminator, of(discriminator.trainable_variables), generated)
            return self.loss_fn(ops.zeros((real.shape[0], 1)), predicted), updated

        losses = []
        for model, optimizer, optimizer_state, loss_of in (
            (discriminator, self.d_optimizer, self.d_state, d_loss_of),
            (generator, self.g_optimizer, self.g_state, g_loss_of),
        ):
            weights = of(model.trainable_variables)
            (loss, updated), gradients = jax.value_and_grad(loss_of, has_aux=True)(weights)
            weights, updated_state = optimizer.stateless_apply(
                of(optimizer_state), gradients, weights
            )
            put(model.trainable_variables, weights)
            put(model.non_trainable_variables, updated)
            put(optimizer_state, updated_state)
            losses.append(loss)
        logs, metrics_state, start = {}, [], 0
        for metric, loss in zip(self.metrics, losses, strict=True):
            end = start + len(metric.variables)
            metric_state = metric.stateless_update_state(metrics_variables[start:end], loss)
            logs[metric.name] = metric.stateless_result(metric_state)
            metrics_state, start = [*metrics_state, *metric_state], end
        trainable, non_trainable = of(self.trainable_variables), of(self.non_trainable_variables)
        return logs, (trainable, non_trainable, optimizer_variables, metrics_state)


def gan():
    gans = {"jax": JaxGAN, "tensorflow": TensorFlowGAN, "torch": TorchGAN}
    return gans[keras.backend.backend()](make_discriminator(), make_generator(), LATENT)


DCGAN = Example(
    path="generative/dcgan_overriding_train_step",
    make_model=gan,
    make_data=lambda num_rows: (random().random((num_rows, SIZE, SIZE, 3), "float32"), None),
    compile_arguments=lambda: {
        "d_optimizer": adam(1e-3),
        "g_optimizer": adam(1e-3),
        "loss_fn": keras.losses.BinaryCrossentropy(from_logits=True),
    },
    exported_part=lambda model: model.generator,
    fresh_inputs=lambda: [
        random(num_rows).normal(size=(num_rows, LATENT)).astype("float32") for num_rows in (1, 3, 7)
    ],
    has_own_step=True,
)

EXAMPLES = [DCGAN]
