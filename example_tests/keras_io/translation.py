"""Examples of keras.io that go from one sequence to another."""

import keras
import numpy as np
from keras import layers, ops

from example_tests.keras_io.example import EPSILON, Example, random

# ------------------------------------------------------------------------------ lstm_seq2seq

NUM_SOURCE, NUM_TARGET, LATENT = 7, 9, 8


def lstm_encoder_decoder():
    encoder_inputs = keras.Input(shape=(None, NUM_SOURCE))
    _, state_h, state_c = layers.LSTM(LATENT, return_state=True)(encoder_inputs)
    decoder_inputs = keras.Input(shape=(None, NUM_TARGET))
    decoder = layers.LSTM(LATENT, return_sequences=True, return_state=True)
    decoder_outputs, _, _ = decoder(decoder_inputs, initial_state=[state_h, state_c])
    outputs = layers.Dense(NUM_TARGET, activation="softmax")(decoder_outputs)
    return keras.Model([encoder_inputs, decoder_inputs], outputs)


def one_hot_sentences(num_rows, source_length=8, target_length=6):
    generator = random(num_rows)
    source = generator.integers(0, NUM_SOURCE, (num_rows, source_length))
    target = np.cumsum(np.ones((num_rows, target_length + 1), int), 1) + source[:, :1]
    source, target = np.eye(NUM_SOURCE, dtype="float32")[source], target % NUM_TARGET
    target = np.eye(NUM_TARGET, dtype="float32")[target]
    return [source, target[:, :-1]], target[:, 1:]


LSTM_SEQ2SEQ = Example(
    path="nlp/lstm_seq2seq",
    make_model=lstm_encoder_decoder,
    make_data=one_hot_sentences,
    compile_arguments=lambda: {
        "optimizer": keras.optimizers.RMSprop(1e-2, epsilon=EPSILON),
        "loss": "categorical_crossentropy",
        "metrics": ["accuracy"],
    },
    fresh_inputs=lambda: [
        one_hot_sentences(num_rows, *lengths)[0]
        for num_rows, lengths in ((1, (1, 1)), (3, (5, 11)), (7, (13, 4)))
    ],
)

# ------------------------------------------- neural_machine_translation_with_transformer

VOCABULARY, MAX_LENGTH, EMBED_DIM = 600, 10, 8


class TransformerEncoder(layers.Layer):
    def __init__(self, embed_dim, dense_dim, num_heads, **kwargs):
        super().__init__(**kwargs)
        self.embed_dim = embed_dim
        self.dense_dim = dense_dim
        self.num_heads = num_heads
        self.attention = layers.MultiHeadAttention(num_heads=num_heads, key_dim=embed_dim)
        self.dense_proj = keras.Sequential(
            [layers.Dense(dense_dim, activation="relu"), layers.Dense(embed_dim)]
        )
        self.layernorm_1 = layers.LayerNormalization()
        self.layernorm_2 = layers.LayerNormalization()
        self.supports_masking = True

    def call(self, inputs, mask=None):
        padding_mask = None if mask is None else ops.cast(mask[:, None, :], dtype="int32")
        attended = self.attention(
            query=inputs, value=inputs, key=inputs, attention_mask=padding_mask
        )
        projected = self.layernorm_1(inputs + attended)
        return self.layernorm_2(projected + self.dense_proj(projected))

    def get_config(self):
        config = {"embed_dim": self.embed_dim, "dense_dim": self.dense_dim}
        return {**super().get_config(), **config, "num_heads": self.num_heads}


class PositionalEmbedding(layers.Layer):
    def __init__(self, sequence_length, vocab_size, embed_dim, **kwargs):
        super().__init__(**kwargs)
        self.token_embeddings = layers.Embedding(vocab_size, embed_dim)
        self.position_embeddings = layers.Embedding(sequence_length, embed_dim)
        self.sequence_length = sequence_length
        self.vocab_size = vocab_size
        self.embed_dim = embed_dim

    def call(self, inputs):
        positions = ops.arange(0, ops.shape(inputs)[-1], 1)
        return self.token_embeddings(inputs) + self.position_embeddings(positions)

    def compute_mask(self, inputs, mask=None):
        return ops.not_equal(inputs, 0)

    def get_config(self):
        config = {"sequence_length": self.sequence_length, "vocab_size": self.vocab_size}
        return {**super().get_config(), **config, "embed_dim": self.embed_dim}


class TransformerDecoder(layers.Layer):
    def __init__(self, embed_dim, latent_dim, num_heads, **kwargs):
        super().__init__(**kwargs)
        self.embed_dim = embed_dim
        self.latent_dim = latent_dim
        self.num_heads = num_heads
        self.attention_1 = layers.MultiHeadAttention(num_heads=num_heads, key_dim=embed_dim)
        self.attention_2 = layers.MultiHeadAttention(num_heads=num_heads, key_dim=embed_dim)
        self.dense_proj = keras.Sequential(
            [layers.Dense(latent_dim, activation="relu"), layers.Dense(embed_dim)]
        )
        self.layernorm_1 = layers.LayerNormalization()
        self.layernorm_2 = layers.LayerNormalization()
        self.layernorm_3 = layers.LayerNormalization()
        self.supports_masking = True

    def call(self, inputs, mask=None):
        inputs, encoder_outputs = inputs
        own_mask, encoder_mask = (None, None) if mask is None else mask
        attended = self.attention_1(
            query=inputs, value=inputs, key=inputs, query_mask=own_mask,
            attention_mask=self.causal_mask(inputs),
        )  # fmt: skip
        first = self.layernorm_1(inputs + attended)
        attended = self.attention_2(
            query=first, value=encoder_outputs, key=encoder_outputs, query_mask=own_mask,
            key_mask=encoder_mask,
        )  # fmt: skip
        second = self.layernorm_2(first + attended)
        return self.layernorm_3(second + self.dense_proj(second))

    def causal_mask(self, inputs):
        batch_size, length, _ = ops.shape(inputs)
        mask = ops.arange(length)[:, None] >= ops.arange(length)
        mask = ops.reshape(ops.cast(mask, dtype="int32"), (1, length, length))
        return ops.tile(mask, [batch_size, 1, 1])

    def get_config(self):
        config = {"embed_dim": self.embed_dim, "latent_dim": self.latent_dim}
        return {**super().get_config(), **config, "num_heads": self.num_heads}


def translator():
    encoder_inputs = keras.Input(shape=(None,), dtype="int64", name="encoder_inputs")
    x = PositionalEmbedding(MAX_LENGTH, VOCABULARY, EMBED_DIM)(encoder_inputs)
    encoder_outputs = TransformerEncoder(EMBED_DIM, 16, 2)(x)

    decoder_inputs = keras.Input(shape=(None,), dtype="int64", name="decoder_inputs")
    encoded = keras.Input(shape=(None, EMBED_DIM), name="decoder_state_inputs")
    x = PositionalEmbedding(MAX_LENGTH, VOCABULARY, EMBED_DIM)(decoder_inputs)
    x = TransformerDecoder(EMBED_DIM, 16, 2)([x, encoded])
    x = layers.Dropout(0.5)(x)
    decoder_outputs = layers.Dense(VOCABULARY, activation="softmax")(x)
    decoder = keras.Model([decoder_inputs, encoded], decoder_outputs)

    outputs = decoder([decoder_inputs, encoder_outputs])
    inputs = {"encoder_inputs": encoder_inputs, "decoder_inputs": decoder_inputs}
    return keras.Model(inputs, outputs, name="transformer")


def padded_sentences(num_rows, source_length=MAX_LENGTH, target_length=MAX_LENGTH):
    generator = random(num_rows)
    source = generator.integers(2, VOCABULARY, (num_rows, source_length))
    target = generator.integers(2, VOCABULARY, (num_rows, target_length + 1))
    for row in range(1, num_rows):  # Zeros are padding.
        source[row, source_length - row % source_length // 2 :] = 0
        target[row, 1 + target_length - row % target_length // 2 :] = 0
    return {"encoder_inputs": source, "decoder_inputs": target[:, :-1]}, target[:, 1:]


def fresh_sentences():
    lengths = ((1, (1, 1)), (3, (5, 10)), (7, (9, 4)))
    return [padded_sentences(num_rows, *pair)[0] for num_rows, pair in lengths]


WITH_TRANSFORMER = Example(
    path="nlp/neural_machine_translation_with_transformer",
    make_model=translator,
    make_data=padded_sentences,
    compile_arguments=lambda: {
        "optimizer": keras.optimizers.RMSprop(3e-3, epsilon=EPSILON),
        "loss": keras.losses.SparseCategoricalCrossentropy(ignore_class=0),
        "metrics": ["accuracy"],
    },
    fresh_inputs=fresh_sentences,
    # Keras on JAX loses the mask of the outputs on their way to the metrics, and counts padding.
    differs_in_keras={"jax": ("accuracy",)},
    # It has no more positions than `MAX_LENGTH`, though its inputs are of any length.
    export_options=lambda: {
        "samples": [padded_sentences(*sizes)[0] for sizes in ((1, 6, 7), (3, 10, 9), (4, 3, 10))]
    },
)

EXAMPLES = [LSTM_SEQ2SEQ, WITH_TRANSFORMER]
