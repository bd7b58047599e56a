"""Examples of keras.io that classify texts, or go on with them."""

import keras
import numpy as np
from keras import layers, ops

from example_tests.keras_io.example import Example, adam, planted_ids, random

VOCABULARY, MAX_LENGTH = 2000, 12


def fresh_ids(lengths, dtype="int64", vocabulary=VOCABULARY):
    """Returns batches of 1, 3 and 7 rows of ids, of the given lengths."""
    return [
        random(length).integers(1, vocabulary, (num_rows, length)).astype(dtype)
        for num_rows, length in zip((1, 3, 7), lengths, strict=True)
    ]


# --------------------------------------------------------------- text_classification_from_scratch


def convolutional_classifier():
    inputs = keras.Input(shape=(None,), dtype="int64")
    x = layers.Embedding(VOCABULARY, 8)(inputs)
    x = layers.Dropout(0.5)(x)
    x = layers.Conv1D(8, 7, padding="valid", activation="relu", strides=3)(x)
    x = layers.Conv1D(8, 7, padding="valid", activation="relu", strides=3)(x)
    x = layers.GlobalMaxPooling1D()(x)
    x = layers.Dense(8, activation="relu")(x)
    x = layers.Dropout(0.5)(x)
    predictions = layers.Dense(1, activation="sigmoid", name="predictions")(x)
    return keras.Model(inputs, predictions)


def reviews(num_rows, length):
    ids, classes = planted_ids(num_rows, length, VOCABULARY)
    return ids, classes.astype("float32")[:, None]


FROM_SCRATCH = Example(
    path="nlp/text_classification_from_scratch",
    make_model=convolutional_classifier,
    make_data=lambda num_rows: reviews(num_rows, 40),
    compile_arguments=lambda: {
        "loss": "binary_crossentropy",
        "optimizer": adam(1e-2),
        "metrics": ["accuracy"],
    },
    fresh_inputs=lambda: fresh_ids((25, 40, 61)),
)

# ---------------------------------------------------------- text_classification_with_transformer


class TransformerBlock(layers.Layer):
    def __init__(self, embed_dim, num_heads, ff_dim, rate=0.1):
        super().__init__()
        self.att = layers.MultiHeadAttention(num_heads=num_heads, key_dim=embed_dim)
        self.ffn = keras.Sequential(
            [layers.Dense(ff_dim, activation="relu"), layers.Dense(embed_dim)]
        )
        self.layernorm1 = layers.LayerNormalization(epsilon=1e-6)
        self.layernorm2 = layers.LayerNormalization(epsilon=1e-6)
        self.dropout1 = layers.Dropout(rate)
        self.dropout2 = layers.Dropout(rate)

    def call(self, inputs):
        attended = self.dropout1(self.att(inputs, inputs))
        normalized = self.layernorm1(inputs + attended)
        return self.layernorm2(normalized + self.dropout2(self.ffn(normalized)))


class TokenAndPositionEmbedding(layers.Layer):
    def __init__(self, maxlen, vocab_size, embed_dim):
        super().__init__()
        self.token_emb = layers.Embedding(input_dim=vocab_size, output_dim=embed_dim)
        self.pos_emb = layers.Embedding(input_dim=maxlen, output_dim=embed_dim)

    def call(self, x):
        positions = ops.arange(start=0, stop=ops.shape(x)[-1], step=1)
        return self.token_emb(x) + self.pos_emb(positions)


def transformer_classifier():
    inputs = layers.Input(shape=(MAX_LENGTH,))
    x = TokenAndPositionEmbedding(MAX_LENGTH, VOCABULARY, 8)(inputs)
    x = TransformerBlock(8, 2, 16)(x)
    x = layers.GlobalAveragePooling1D()(x)
    x = layers.Dropout(0.1)(x)
    x = layers.Dense(8, activation="relu")(x)
    x = layers.Dropout(0.1)(x)
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(x))


WITH_TRANSFORMER = Example(
    path="nlp/text_classification_with_transformer",
    make_model=transformer_classifier,
    make_data=lambda num_rows: planted_ids(num_rows, MAX_LENGTH, VOCABULARY),
    compile_arguments=lambda: {
        "optimizer": adam(3e-3),
        "loss": "sparse_categorical_crossentropy",
        "metrics": ["accuracy"],
    },
    fresh_inputs=lambda: fresh_ids((MAX_LENGTH,) * 3),
)

# --------------------------------------------------------------------- bidirectional_lstm_imdb


def bidirectional_classifier():
    inputs = keras.Input(shape=(None,), dtype="int32")
    x = layers.Embedding(VOCABULARY, 8)(inputs)
    x = layers.Bidirectional(layers.LSTM(6, return_sequences=True))(x)
    x = layers.Bidirectional(layers.LSTM(6))(x)
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(x))


BIDIRECTIONAL = Example(
    path="nlp/bidirectional_lstm_imdb",
    make_model=bidirectional_classifier,
    make_data=lambda num_rows: reviews(num_rows, MAX_LENGTH),
    compile_arguments=lambda: {
        "optimizer": adam(1e-2),
        "loss": "binary_crossentropy",
        "metrics": ["accuracy"],
    },
    fresh_inputs=lambda: fresh_ids((1, 9, 17), "int32"),
)

# -------------------------------------------------------- text_generation_with_miniature_gpt


def causal_attention_mask(batch_size, n_dest, n_src, dtype):
    i = ops.arange(n_dest)[:, None]
    j = ops.arange(n_src)
    mask = ops.reshape(ops.cast(i >= j - n_src + n_dest, dtype), [1, n_dest, n_src])
    return ops.tile(mask, [batch_size, 1, 1])


class CausalTransformerBlock(TransformerBlock):
    def call(self, inputs):
        batch_size, length = ops.shape(inputs)[0], ops.shape(inputs)[1]
        mask = causal_attention_mask(batch_size, length, length, "bool")
        attended = self.dropout1(self.att(inputs, inputs, attention_mask=mask))
        normalized = self.layernorm1(inputs + attended)
        return self.layernorm2(normalized + self.dropout2(self.ffn(normalized)))


def miniature_gpt():
    inputs = layers.Input(shape=(MAX_LENGTH,), dtype="int32")
    x = TokenAndPositionEmbedding(MAX_LENGTH, VOCABULARY, 8)(inputs)
    x = CausalTransformerBlock(8, 2, 16)(x)
    outputs = layers.Dense(VOCABULARY)(x)
    return keras.Model(inputs=inputs, outputs=[outputs, x])


def texts_and_next_words(num_rows):
    ids = planted_ids(num_rows, MAX_LENGTH + 1, VOCABULARY)[0]
    return ids[:, :-1], ids[:, 1:]


MINIATURE_GPT = Example(
    path="nlp/text_generation_with_miniature_gpt",
    make_model=miniature_gpt,
    make_data=texts_and_next_words,
    compile_arguments=lambda: {
        "optimizer": adam(5e-3),
        "loss": [keras.losses.SparseCategoricalCrossentropy(from_logits=True), None],
    },
    fresh_inputs=lambda: fresh_ids((MAX_LENGTH,) * 3, "int32"),
    refusals={"savedmodel": {"torch": "__init__ of class TokenAndPositionEmbedding does not take"}},
    reasons={"savedmodel": "The example's layers take no **kwargs."},
)

# ------------------------------------------------------------------------------ addition_rnn

CHARACTERS, DIGITS = "0123456789+ ", 2
QUESTION = 2 * DIGITS + 1


def adding_rnn():
    model = keras.Sequential()
    model.add(layers.Input((QUESTION, len(CHARACTERS))))
    model.add(layers.LSTM(12))
    model.add(layers.RepeatVector(DIGITS + 1))
    model.add(layers.LSTM(12, return_sequences=True))
    model.add(layers.Dense(len(CHARACTERS), activation="softmax"))
    return model


def one_hot(texts, length):
    encoded = np.zeros((len(texts), length, len(CHARACTERS)), dtype=bool)
    for row, text in enumerate(texts):
        for position, character in enumerate(text.ljust(length)):
            encoded[row, position, CHARACTERS.index(character)] = True
    return encoded


def sums(num_rows):
    pairs = random(num_rows).integers(0, 10**DIGITS, (num_rows, 2))
    questions = one_hot([f"{a}+{b}" for a, b in pairs], QUESTION)
    return questions, one_hot([str(a + b) for a, b in pairs], DIGITS + 1)


ADDITION = Example(
    path="nlp/addition_rnn",
    make_model=adding_rnn,
    make_data=sums,
    compile_arguments=lambda: {
        "loss": "categorical_crossentropy",
        "optimizer": adam(1e-2),
        "metrics": ["accuracy"],
    },
    fresh_inputs=lambda: [sums(num_rows)[0] for num_rows in (1, 3, 7)],
)

EXAMPLES = [FROM_SCRATCH, WITH_TRANSFORMER, BIDIRECTIONAL, MINIATURE_GPT, ADDITION]
