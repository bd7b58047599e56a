"""Models of sequences of free length: recurrent, attending, and both with masks."""

from typing import Any

import keras
from keras import ops

from keras_deepseek import layers

Model = keras.Model
VOCABULARY, WIDTH = 30, 16


def tokens(name: str = "tokens") -> Any:
    return keras.Input((None,), dtype="int32", name=name)


def signal(width: int = WIDTH, name: str = "signal") -> Any:
    return keras.Input((None, width), name=name)


def embed(inputs: Any, *, mask_zero: bool = True) -> Any:
    return layers.Embedding(VOCABULARY, WIDTH, mask_zero=mask_zero)(inputs)


def feed_forward(x: Any) -> Any:
    hidden = layers.Dense(32, activation="gelu")(layers.LayerNormalization()(x))
    return layers.Add()([x, layers.Dense(WIDTH)(hidden)])


def simple_rnn() -> Model:
    inputs = signal(5)
    return Model(inputs, layers.SimpleRNN(8)(inputs))


def lstm() -> Model:
    inputs = signal(5)
    x = layers.LSTM(8, return_sequences=True)(inputs)
    return Model(inputs, layers.Dense(3)(layers.LSTM(6)(x)))


def gru() -> Model:
    inputs = signal(5)
    return Model(inputs, layers.Dense(3)(layers.GRU(8)(inputs)))


def bidirectional_lstm() -> Model:
    inputs = signal(5)
    return Model(inputs, layers.Bidirectional(layers.LSTM(8, return_sequences=True))(inputs))


def bidirectional_gru() -> Model:
    inputs = signal(5)
    return Model(inputs, layers.Bidirectional(layers.GRU(8))(inputs))


def lstm_with_states() -> Model:
    inputs = signal(5)
    return Model(inputs, list(layers.LSTM(8, return_sequences=True, return_state=True)(inputs)))


def masked_lstm() -> Model:
    inputs = tokens()
    return Model(inputs, layers.Dense(3)(layers.LSTM(8)(embed(inputs))))


def masked_bidirectional() -> Model:
    inputs = tokens()
    x = layers.Bidirectional(layers.GRU(8, return_sequences=True))(embed(inputs))
    return Model(inputs, layers.Bidirectional(layers.LSTM(6))(x))


def masking_layer() -> Model:
    inputs = signal(5)
    return Model(inputs, layers.GRU(8)(layers.Masking(0.0)(inputs)))


def conv_lstm() -> Model:
    inputs = keras.Input((5, 8, 8, 2), name="film")
    return Model(inputs, layers.ConvLSTM2D(4, 3, padding="same")(inputs))


def time_distributed() -> Model:
    inputs = signal(6)
    return Model(inputs, layers.TimeDistributed(layers.Dense(4, activation="relu"))(inputs))


def masked_average() -> Model:
    inputs = tokens()
    return Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(embed(inputs))))


def encoder_with_mask() -> Model:
    inputs = tokens()
    x = embed(inputs)
    attended = layers.MultiHeadAttention(4, 4)(x, x)
    return Model(inputs, feed_forward(layers.LayerNormalization()(layers.Add()([x, attended]))))


def causal_attention() -> Model:
    inputs = tokens()
    x = embed(inputs, mask_zero=False)
    x = layers.Add()([x, layers.MultiHeadAttention(4, 4)(x, x, use_causal_mask=True)])
    return Model(inputs, layers.Dense(VOCABULARY)(feed_forward(x)))


def grouped_query_attention() -> Model:
    inputs = tokens()
    x = embed(inputs)
    attended = layers.GroupQueryAttention(4, 4, 2)(x, x, use_causal_mask=True)
    return Model(inputs, feed_forward(layers.Add()([x, attended])))


def translation() -> Model:
    source, target = tokens("source"), tokens("target")
    memory, x = embed(source), embed(target)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True)])
    x = layers.Add()([x, layers.MultiHeadAttention(2, 8)(x, memory)])
    outputs = layers.Dense(VOCABULARY)(feed_forward(x))
    return Model({"source": source, "target": target}, outputs)


def seq2seq_attention() -> Model:
    source, target = signal(6, "source"), signal(6, "target")
    memory = layers.GRU(8, return_sequences=True)(source)
    x = layers.LSTM(8, return_sequences=True)(target)
    both = [layers.Attention()([x, memory]), layers.AdditiveAttention()([x, memory])]
    return Model([source, target], layers.Concatenate()([x, *both]))


def rms_norm_with_rope() -> Model:
    inputs = tokens()
    x = embed(inputs, mask_zero=False)
    normed = layers.RMSNormalization()(x)
    rotary = layers.RotaryEmbedding()
    attention = layers.CachedAttention(layers.GroupQueryAttention(4, 4, 2), rotary=rotary)
    x = layers.Add()([x, attention(normed)])
    x = layers.Add()([x, layers.SwiGLU(32)(layers.RMSNormalization()(x))])
    return Model(inputs, layers.Dense(VOCABULARY)(x))


def last_token() -> Model:
    inputs = tokens()
    x = layers.Conv1D(8, 3, padding="same", activation="relu")(embed(inputs, mask_zero=False))
    return Model(inputs, {"last": x[:, -1], "largest": ops.max(x, axis=1), "all": x})


MODELS = {
    builder.__name__: builder
    for builder in (
        simple_rnn,
        lstm,
        gru,
        bidirectional_lstm,
        bidirectional_gru,
        lstm_with_states,
        masked_lstm,
        masked_bidirectional,
        masking_layer,
        conv_lstm,
        time_distributed,
        masked_average,
        encoder_with_mask,
        causal_attention,
        grouped_query_attention,
        translation,
        seq2seq_attention,
        rms_norm_with_rope,
        last_token,
    )
}
