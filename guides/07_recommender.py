"""
Title: Recommend the next item, and swap the attention
Author: The keras_deepseek authors
Date created: 2026/11/30
Last modified: 2026/11/30
Description: A sequential recommender beside popularity and the best possible, with four attentions.
Time: 2 minutes on two cores
Install: "keras_deepseek[pictures]"
"""

"""
What will a user look at next? This guide trains the package's recommender on histories of items,
compares it with a list of the most popular items, and then builds the same model from layers, to
try other kinds of attention.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np

from keras_deepseek import layers
from keras_deepseek.models import (
    HitRate,
    SequentialRecommender,
    SequentialRecommenderConfig,
    SyntheticInteractions,
)
from keras_deepseek.training import WarmupDecay

LENGTH, DIM, NUM_HEADS = 20, 64, 2
EPOCHS, BATCH_SIZE = 20, 32
keras.utils.set_random_seed(0)

"""
## Histories with a known structure

With real data nobody knows how good a recommender could be. So these histories are drawn from a
known rule: four times out of five, the kind of the next item follows from the last item, and its
style from the item before. Otherwise the user takes anything, popular items more often. A good
model has to read the last two items, in their order. (`read_movielens` reads real histories.)

Each user's last item is the test. The inputs are the items before it, filled up with zeros on the
left.
"""

interactions = SyntheticInteractions(
    num_users=1000, num_categories=6, num_styles=3, shortest=10, longest=LENGTH
)
split = interactions.draw().leave_last_out()
train_inputs = split.train_inputs(LENGTH)
test_inputs, test_items = split.test_data(LENGTH)
print(f"{split.num_items} items; the first user: {split.histories[0].tolist()}")

"""
## Two yardsticks

The hit rate at 10 is the share of users whose next item is among the ten that were recommended. The
lower yardstick recommends the most popular items to everybody. The upper one knows the rule.
"""


def score_popularity():
    metric = HitRate(10)
    counts = np.concatenate([[-1], split.item_counts()]).astype("float32")  # Item 0 is padding.
    metric.update_state(test_items, np.tile(counts, (len(test_items), 1)))
    return float(metric.result())


hit_rates = {"most popular": score_popularity()}
best = interactions.best_hit_rate([history[:-1] for history in split.held_out])
print(f"popularity {hit_rates['most popular']:.3f}, best possible {best:.3f}")

"""
## The package's recommender

Self-attention reads the history; the score of an item is the product of its embedding and the state
of the newest item. The training model learns at each position of a history at once. Its loss looks
at the right item and at a few others that are drawn anew in each step, so that its cost does not
grow with the number of items.
"""

negatives = {"num_negatives": 64, "seed": 0}
NUM_STEPS = EPOCHS * -(-len(train_inputs["targets"]) // BATCH_SIZE)
item_weights = (split.item_counts() + 1.0) ** 0.75  # Popular items are drawn more often.


def measure(training_model, scoring_model):
    rate = WarmupDecay(5e-3, total_steps=NUM_STEPS, warmup_steps=20)
    training_model.compile(keras.optimizers.Adam(rate))
    training_model.fit(train_inputs, epochs=EPOCHS, batch_size=BATCH_SIZE, verbose=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    scoring_model.compile(loss=loss, metrics=[HitRate(10)])
    return scoring_model.evaluate(test_inputs, test_items, verbose=0)[1]


config = SequentialRecommenderConfig(
    split.num_items,
    max_length=LENGTH,
    hidden_dim=DIM,
    num_heads=NUM_HEADS,
    dropout=0.0,
    initializer_range=0.1,  # A small model learns faster from larger weights.
)
recommender = SequentialRecommender(config)
hit_rates["recommender"] = measure(
    recommender.make_training_model(item_weights=item_weights, **negatives), recommender
)
items, scores = recommender.recommend([[3, 1, 7], [5]], k=5)
print(f"hit rate {hit_rates['recommender']:.3f}; for two new users: {items.tolist()}")

"""
## The same from layers, with another attention

A model is a plain Keras model, so it can be built from layers. Here a function makes the attention
of each block, and nothing else changes. `mask_zero` hides the padding from every layer behind it,
and `Add` passes that mask on.
"""


def build(make_attention):
    item_ids = keras.Input((LENGTH,), dtype="int32", name="item_ids")
    targets = keras.Input((LENGTH,), dtype="int32", name="targets")
    table = layers.ReversibleEmbedding(split.num_items + 1, DIM, mask_zero=True)
    hidden = layers.LayerNorm()(table(item_ids))
    for _ in range(2):
        attended = make_attention()(layers.LayerNorm()(hidden))
        hidden = layers.Add()([hidden, attended])
        hidden = layers.Add()([hidden, layers.SwiGLU(4 * DIM)(layers.LayerNorm()(hidden))])
    hidden = layers.LayerNorm()(hidden)
    loss = layers.SampledSoftmax(
        token_embedding=table, class_weights=[0, *item_weights], ignore_class=0, **negatives
    )
    inputs = {"item_ids": item_ids, "targets": targets}
    scores = table(hidden[:, -1], reverse=True)
    return keras.Model(inputs, loss(hidden, targets)), keras.Model({"item_ids": item_ids}, scores)


"""
Three kinds of causal attention, in which no item sees a later one:

- **Latent attention** keeps one small vector for each item instead of keys and values of each head.
- **Linear attention** keeps one state for a whole history, whatever its length.
- **Sparse attention** with a window of two sees an item and the one before it, and nothing else.

The window is all that this rule needs. The others have to find out where to look.
"""

attentions = {
    "latent": lambda: layers.MultiHeadLatentAttention(
        NUM_HEADS,
        nope_head_dim=16,
        rope_head_dim=16,
        value_head_dim=32,
        key_value_lora_rank=32,
        rotary=layers.RotaryEmbedding(use_interleaved_pairs=True),
        use_causal_mask=True,
    ),
    "linear": lambda: layers.LinearAttention(
        NUM_HEADS, head_dim=32, use_causal_mask=True, rotary=layers.RotaryEmbedding(100.0)
    ),
    "sparse": lambda: layers.BlockSparseAttention(
        NUM_HEADS, head_dim=32, use_causal_mask=True, sliding_window=2, block_size=4
    ),
}
for name, make_attention in attentions.items():
    hit_rates[name] = measure(*build(make_attention))
    print(f"{name}: hit rate {hit_rates[name]:.3f}")

"""
## Look

The dashed line is the best that anybody can do: one item in five is taken by chance.
"""

_, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
bars = axes.bar(list(hit_rates), list(hit_rates.values()), color=["0.6", "C0", "C1", "C1", "C1"])
axes.bar_label(bars, fmt="%.2f", label_type="center")
axes.axhline(best, color="black", linestyle="--", label="best possible")
axes.set(ylabel="hit rate at 10", ylim=(0, 1), title="Is the next item among ten?")
axes.legend(loc="upper left")
plt.savefig("hit_rates.png")

print(keras.backend.backend(), {name: round(rate, 3) for name, rate in hit_rates.items()})
assert hit_rates["recommender"] > 2 * hit_rates["most popular"]
assert min(hit_rates[name] for name in attentions) > 3 * hit_rates["most popular"]
assert hit_rates["sparse"] > 0.85 * best

"""
`make_serving_model` returns a model from histories to items, to export and to serve like any other.
The page on layers helps to choose an attention, and says what each costs.
"""
