import json

import keras
import numpy as np
import pytest

from keras_deepseek.artifacts import CheckpointError, InvalidInputError
from keras_deepseek.deploy import Exporter
from keras_deepseek.inference import ServingEngine
from keras_deepseek.models import (
    HitRate,
    NormalizedDiscountedCumulativeGain,
    SequentialRecommender,
    SequentialRecommenderConfig,
    SyntheticInteractions,
    enable_lora,
    merge_lora,
    save_peft_adapter,
)
from keras_deepseek.testing import assert_close
from keras_deepseek.training import Trainer

NUM_ITEMS = 20


def make_recommender(dtype=None, **changes):
    sizes = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "intermediate_dim": 32}
    config = {"num_items": NUM_ITEMS, "max_length": 6, **sizes, **changes}
    return SequentialRecommender(SequentialRecommenderConfig(**config), dtype=dtype)


def to_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def score(recommender, histories):
    return to_numpy(recommender({"item_ids": np.array(histories, "int32")}))


def test_a_short_training_beats_popularity_by_far():
    interactions = SyntheticInteractions(num_users=600, num_categories=6, num_styles=2, seed=1)
    data = interactions.draw()
    split = data.leave_last_out()
    recommender = make_recommender(num_items=data.num_items, max_length=20, hidden_dim=32)
    training_model = recommender.make_training_model(
        32, item_weights=(split.item_counts() + 1.0) ** 0.75, seed=0
    )
    training_model.compile(keras.optimizers.Adam(1e-2))
    Trainer(training_model).fit(split.train_inputs(20), batch_size=64, epochs=12, verbose=0)

    recommender.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[HitRate(10), NormalizedDiscountedCumulativeGain(10)],
    )
    inputs, targets = split.test_data(20)
    results = recommender.evaluate(inputs, targets, verbose=0, return_dict=True)
    popular = HitRate(10)
    counts = np.concatenate([[-1.0], split.item_counts()])
    popular.update_state(targets, np.tile(counts, (len(targets), 1)))
    best = interactions.best_hit_rate([history[:-1] for history in split.held_out])
    assert results["hit_rate_at_10"] > float(popular.result()) + 0.3
    assert results["hit_rate_at_10"] < best + 0.05
    assert 0 < results["ndcg_at_10"] < results["hit_rate_at_10"]


def test_a_score_is_the_product_of_the_newest_hidden_state_and_the_items_embedding():
    recommender, histories = make_recommender(), [[0, 3, 5], [7, 2, 9]]
    hidden = to_numpy(recommender.backbone({"item_ids": np.array(histories, "int32")}))
    table = to_numpy(recommender.backbone.item_embedding.embeddings)
    scores = score(recommender, histories)
    assert_close(scores[:, 1:], hidden[:, -1] @ table[1:].T)
    assert np.all(scores[:, 0] < scores[:, 1:].min())


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_what_is_recommended_are_the_best_scores_of_what_was_not_seen(exclude_seen):
    recommender = make_recommender()
    histories = [[3], [4, 4, 9, 1], list(range(1, 16))]  # The last is longer than what is read.
    items, scores = recommender.recommend(histories, 4, exclude_seen=exclude_seen)
    padded = [([0] * 6 + history)[-6:] for history in histories]
    expected = score(recommender, padded)
    for row, history in enumerate(histories):
        if exclude_seen:
            expected[row, history] = -np.inf
    assert_close(scores, -np.sort(-expected, axis=1)[:, :4])
    assert_close(np.take_along_axis(expected, items, axis=1), scores)


def test_recommendations_are_of_the_weights_of_the_moment():
    recommender = make_recommender()
    old_items, _ = recommender.recommend([[1, 2]], 3)
    recommender.backbone.item_embedding.embeddings.assign(
        -1 * to_numpy(recommender.backbone.item_embedding.embeddings)
    )
    new_items, _ = recommender.recommend([[1, 2]], 3)
    assert old_items.tolist() != new_items.tolist()


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.filterwarnings("ignore:The use of `x.T`")  # Of Keras, for an embedding on torch.
def test_recommendations_are_of_a_lora_and_of_quantized_weights():
    recommender, row = make_recommender(), [[0, 0, 0, 3, 1, 7]]

    def find_gap():
        items, scores = recommender.recommend([[3, 1, 7]], 4)
        return np.abs(score(recommender, row)[0][items[0]] - scores[0]).max()

    assert find_gap() < 1e-5
    enable_lora(recommender, rank=2)
    for variable in recommender.trainable_variables:
        variable.assign(np.random.default_rng(0).normal(size=variable.shape) * 0.3)
    assert find_gap() < 1e-5
    merge_lora(recommender)
    recommender.quantize("int8")
    assert find_gap() < 1e-5


@pytest.mark.parametrize("count", [0, 1, 5])
def test_any_number_of_users_is_answered(count):
    recommender = make_recommender()
    histories = [[item + 1] for item in range(count)]
    items, scores = recommender.recommend(histories, 2)
    assert items.shape == scores.shape == (count, 2)
    for row, history in zip(items, histories, strict=True):
        assert row.tolist() == recommender.recommend([history], 2)[0][0].tolist()


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        ([[1], [2, 21]], "the history of user 1, counted from 0, has 2 to 21"),
        ([3, 1, 7], "user 0, counted from 0, has 3"),
        (["ab"], "has 'ab'"),
        ([[1.5]], r"has \[1.5\]"),
    ],
)
def test_histories_of_anything_but_items_that_exist_are_refused(histories, message):
    with pytest.raises(InvalidInputError, match=message):
        make_recommender().recommend(histories)


def test_what_is_no_number_of_items_is_refused_after_it_was_taken_for_one_too():
    recommender = make_recommender()
    recommender.recommend([[1]], 1)
    for k in (True, 1.0):
        with pytest.raises(InvalidInputError, match="`k` must be"):
            recommender.recommend([[1]], k)
    with pytest.raises(InvalidInputError, match="`exclude_seen` must be"):
        recommender.recommend([[1]], 1, exclude_seen=1)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0] * 5, r"`item_weights` .* each of the 20 items, .* of shape \(5,\)"),
        ("even", "`item_weights` .* received 'even'"),
        ([1.0] * 19 + [0.0], "`item_weights` must be positive.* Item 20 has 0.0"),
    ],
)
def test_weights_that_are_not_those_of_the_items_are_refused_by_their_name(weights, message):
    with pytest.raises(InvalidInputError, match=message):
        make_recommender().make_training_model(item_weights=weights)


def test_the_training_model_shares_every_weight_and_the_policy():
    recommender = make_recommender("mixed_float16")
    ours = {id(weight) for weight in recommender.trainable_weights}
    training_model = recommender.make_training_model()
    assert ours == {id(weight) for weight in training_model.trainable_weights}
    assert training_model.dtype_policy.name == "mixed_float16"


def test_padding_is_never_drawn_and_weights_are_those_of_items():
    weights = np.arange(NUM_ITEMS) + 1.0
    model = make_recommender().make_training_model(5000, item_weights=weights, seed=0)
    drawn = np.bincount(
        to_numpy(model.get_layer("sampled_softmax").draw_classes()), minlength=NUM_ITEMS + 1
    )
    assert drawn[0] == 0
    assert np.abs(drawn[1:] / 5000 - weights / weights.sum()).max() < 0.02


def test_a_saved_recommender_is_the_same_after_loading(tmp_path):
    recommender = make_recommender()
    recommender.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(revived, SequentialRecommender)
    assert revived.config == recommender.config
    assert_close(score(revived, [[0, 3, 5]]), score(recommender, [[0, 3, 5]]))


def test_under_a_mixed_policy_scores_are_in_float32():
    recommender = make_recommender("mixed_bfloat16")
    scores = recommender({"item_ids": np.array([[0, 3, 5]], "int32")})
    assert keras.backend.standardize_dtype(scores.dtype) == "float32"
    assert recommender.backbone.transformer_layers[0].compute_dtype == "bfloat16"


@pytest.mark.nightly
def test_what_is_served_is_exported_and_recommends_the_same(tmp_path):
    recommender = make_recommender()
    serving_model = recommender.make_serving_model(5)
    assert {name: tuple(output.shape) for name, output in serving_model.output.items()} == {
        "items": (None, 5),
        "scores": (None, 5),
    }
    assert serving_model.input["item_ids"].shape == (None, 6)
    form = "savedmodel" if keras.backend.backend() == "tensorflow" else "onnx"
    Exporter(serving_model, form, verbose=False).export(tmp_path / "bundle")
    histories = [[0, 0, 0, 2, 8, 3], [1, 2, 3, 4, 5, 6]]
    with ServingEngine(tmp_path / "bundle") as engine:
        served = engine.predict({"item_ids": np.array(histories, "int32")})
    items, scores = recommender.recommend([histories[0][3:], histories[1]], 5)
    np.testing.assert_array_equal(served["items"], items)
    assert_close(served["scores"], scores)


def test_a_preset_recommends_the_same(tmp_path):
    recommender = make_recommender(activation="relu")
    recommender.save_to_preset(tmp_path / "preset", verbose=False)
    config = json.loads((tmp_path / "preset" / "config.json").read_text())
    assert config["architectures"] == ["SequentialRecommender"]
    assert (config["num_items"], config["activation"]) == (NUM_ITEMS, "relu")
    again = SequentialRecommender.from_preset(tmp_path / "preset", verbose=False)
    assert again.config == recommender.config
    histories = [[3], [4, 4, 9, 1]]
    for received, expected in zip(
        again.recommend(histories, 4), recommender.recommend(histories, 4), strict=True
    ):
        np.testing.assert_array_equal(received, expected)


def test_a_preset_of_more_items_than_it_has_is_refused(tmp_path):
    make_recommender().save_to_preset(tmp_path / "preset", verbose=False)
    with pytest.raises(
        CheckpointError,
        match=r"'backbone/item_embedding/embeddings' has shape \(21, 16\), expected \(31",
    ):
        SequentialRecommender.from_preset(tmp_path / "preset", verbose=False, num_items=30)


def test_a_lora_is_in_the_preset_and_has_no_form_of_peft(tmp_path):
    recommender = make_recommender()
    enable_lora(recommender, rank=2, target_names=["intermediate_dense"])
    layer = recommender.backbone.transformer_layers[0].intermediate_dense
    layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    recommender.save_to_preset(tmp_path / "preset", verbose=False)
    again = SequentialRecommender.from_preset(tmp_path / "preset", verbose=False)
    assert_close(score(again, [[0, 3, 5]]), score(recommender, [[0, 3, 5]]))
    with pytest.raises(InvalidInputError, match="received a `SequentialRecommender`"):
        save_peft_adapter(recommender, tmp_path / "adapter")
