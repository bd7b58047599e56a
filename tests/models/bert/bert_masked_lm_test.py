import json

import keras
import numpy as np
import pytest

from keras_deepseek.errors import CheckpointError
from keras_deepseek.models import (
    BertConfig,
    BertMaskedLM,
    enable_lora,
    load_peft_adapter,
    save_peft_adapter,
)
from keras_deepseek.models.checkpoints.weights_folder import WeightsFolder
from keras_deepseek.testing import assert_close
from keras_deepseek.training import MaskedTokens, Trainer
from tests.oracles.language_models import to_numpy
from tests.oracles.model_parity import (
    check_case,
    part,
    read_cases,
    read_config,
    relative_error,
)
from tests.oracles.preset_model import NAMES, encode_safetensors

CASES = read_cases("bert_masked_lm")
VOCABULARY_SIZE, LENGTH, MASK = 30, 12, 4


def make_model(**changes):
    sizes = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "intermediate_dim": 32}
    config = {"vocabulary_size": VOCABULARY_SIZE, "max_length": LENGTH, **sizes}
    options = {key: changes.pop(key) for key in ("use_mask_positions", "dtype") if key in changes}
    return BertMaskedLM(BertConfig(**{**config, "dropout": 0.0, **changes}), **options)


def draw_rows(count=64):
    """Returns rows of one token each: a masked one is known from its neighbours."""
    tokens = np.random.default_rng(0).integers(5, VOCABULARY_SIZE, (count, 1))
    return np.repeat(tokens, LENGTH, axis=1).astype("int32")


def make_data(**options):
    return MaskedTokens(
        {"token_ids": draw_rows()},
        16,
        mask_token_id=MASK,
        vocabulary_size=VOCABULARY_SIZE,
        special_token_ids=(1, 2, 3),
        **options,
    )


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_are_those_of_transformers(name):
    case = CASES[name]
    model = BertMaskedLM(BertConfig.from_checkpoint_config(read_config(case)))
    check_case(model, model.checkpoint_entries(), case)


@pytest.mark.parametrize(("use_mask_positions", "uses_trainer"), [(False, False), (True, True)])
def test_it_learns_what_was_masked(use_mask_positions, uses_trainer):
    model = make_model(use_mask_positions=use_mask_positions)
    model.compile(
        keras.optimizers.Adam(1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-100),
    )
    data = make_data(use_mask_positions=use_mask_positions)
    fit = Trainer(model).fit if uses_trainer else model.fit
    losses = fit(data, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < 0.75 * losses[0]


def test_logits_at_mask_positions_are_those_of_all():
    everywhere, chosen = make_model(), make_model(use_mask_positions=True)
    chosen.set_weights(everywhere.get_weights())
    inputs, _ = make_data(use_mask_positions=True)[0]
    positions = inputs["mask_positions"]
    without = {name: array for name, array in inputs.items() if name != "mask_positions"}
    logits = keras.ops.convert_to_numpy(everywhere(without))
    expected = np.take_along_axis(logits, positions[:, :, None], axis=1)
    assert_close(keras.ops.convert_to_numpy(chosen(inputs)), expected)


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_tied_output_has_no_kernel_of_its_own(is_tied):
    model = make_model(tie_word_embeddings=is_tied)
    kernels = [
        weight
        for weight in model.weights
        if VOCABULARY_SIZE in weight.shape and len(weight.shape) == 2
    ]
    assert len(kernels) == (1 if is_tied else 2)


@pytest.mark.parametrize("use_mask_positions", [False, True])
def test_a_saved_model_is_the_same_after_loading(use_mask_positions, tmp_path):
    model = make_model(use_mask_positions=use_mask_positions, activation="gelu_approximate")
    model.save(tmp_path / "model.keras")
    revived = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(revived, BertMaskedLM)
    assert revived.config == model.config
    inputs, _ = make_data(use_mask_positions=use_mask_positions)[0]
    assert_close(
        keras.ops.convert_to_numpy(revived(inputs)), keras.ops.convert_to_numpy(model(inputs))
    )


def test_dropout_acts_in_training_alone():
    model = make_model(dropout=0.5, attention_dropout=0.5)
    inputs, _ = make_data()[0]
    first, second = (keras.ops.convert_to_numpy(model(inputs)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    first, second = (keras.ops.convert_to_numpy(model(inputs, training=True)) for _ in range(2))
    assert np.any(first != second)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_near_the_full_one(dtype):
    full, half = make_model(), make_model(dtype=dtype)
    half.set_weights(full.get_weights())
    inputs, _ = make_data()[0]
    expected = keras.ops.convert_to_numpy(full(inputs))
    half_logits = keras.ops.convert_to_numpy(keras.ops.cast(half(inputs), "float32"))
    assert half.backbone.transformer_layers[0].compute_dtype == dtype.removeprefix("mixed_")
    assert np.abs(half_logits - expected).max() < 0.05 * np.abs(expected).max()


def write_preset(folder, case, tensors):
    """Writes a preset as others do, without what it is read by."""
    folder.mkdir()
    config = {"architectures": ["BertForMaskedLM"], **read_config(case)}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(encode_safetensors(tensors, NAMES))


def check_logits(model, case):
    real = case["input/padding_mask"][..., None]
    logits = keras.ops.convert_to_numpy(model(part(case, "input/")))
    assert relative_error(logits * real, case["logits"] * real) < 1e-4


@pytest.mark.parametrize("name", list(CASES)[:2])
def test_a_preset_of_others_is_read_and_what_is_written_has_the_same_tensors(name, tmp_path):
    case = CASES[name]
    write_preset(tmp_path / "theirs", case, part(case, "weight/"))
    model = BertMaskedLM.from_preset(tmp_path / "theirs", verbose=False)
    check_logits(model, case)
    model.save_to_preset(tmp_path / "ours", verbose=False)
    stored = WeightsFolder(tmp_path / "ours").tensors
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        name: array.shape for name, array in part(case, "weight/").items()
    }
    check_logits(BertMaskedLM.from_preset(tmp_path / "ours", verbose=False), case)


def test_a_checkpoint_of_the_first_years_is_read_with_its_pooler_passed_over(tmp_path):
    case = CASES["tied, gelu"]
    tensors = {}
    for name, array in part(case, "weight/").items():
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        tensors[old.replace("LayerNorm.bias", "LayerNorm.beta")] = array
    tensors["bert.pooler.dense.weight"] = np.zeros((6, 6), "float32")
    tensors["cls.seq_relationship.bias"] = np.zeros(2, "float32")
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    write_preset(tmp_path / "old", case, tensors)
    check_logits(BertMaskedLM.from_preset(tmp_path / "old", verbose=False), case)


def test_a_tied_head_of_other_numbers_is_told_and_read_untied(tmp_path):
    case = CASES["tied, gelu"]
    tensors = part(case, "weight/")
    table = tensors["bert.embeddings.word_embeddings.weight"]
    head = {"cls.predictions.decoder.weight": 3 * table}
    write_preset(tmp_path / "other", case, {**tensors, **head})
    with pytest.raises(
        CheckpointError, match=r"decoder\.weight' and 'bert.* tie_word_embeddings=F"
    ):
        BertMaskedLM.from_preset(tmp_path / "other", verbose=False)
    model = BertMaskedLM.from_preset(tmp_path / "other", verbose=False, tie_word_embeddings=False)
    layer = model.masked_lm_head
    np.testing.assert_array_equal(to_numpy(layer.kernel), 3 * table.T)
    np.testing.assert_array_equal(to_numpy(layer.bias), tensors["cls.predictions.bias"])


def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_its_name(tmp_path):
    case = CASES["tied, gelu"]
    tensors = part(case, "weight/")
    del tensors["bert.encoder.layer.1.output.dense.bias"]
    write_preset(tmp_path / "torn", case, tensors)
    with pytest.raises(CheckpointError, match=r"missing: 'bert\.encoder\.layer\.1\.output\.dense"):
        BertMaskedLM.from_preset(tmp_path / "torn", verbose=False)


def test_a_lora_is_saved_in_a_preset_and_for_peft(tmp_path):
    model = BertMaskedLM(BertConfig.from_preset("tiny", vocabulary_size=50))
    model.save_to_preset(tmp_path / "plain", verbose=False)
    enable_lora(model, 2, target_names=["query", "attention_output", "intermediate_dense"])
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.2, variable.shape))
    tokens = rng.integers(0, 50, (2, 6))
    inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    expected = to_numpy(model(inputs))

    model.save_to_preset(tmp_path / "merged", verbose=False)
    merged = BertMaskedLM.from_preset(tmp_path / "merged", verbose=False)
    assert_close(to_numpy(merged(inputs)), expected, 1e-5)

    save_peft_adapter(model, tmp_path / "adapter")
    again = BertMaskedLM.from_preset(tmp_path / "plain", verbose=False)
    assert np.abs(to_numpy(again(inputs)) - expected).max() > 0.01
    load_peft_adapter(again, tmp_path / "adapter")
    assert_close(to_numpy(again(inputs)), expected, 1e-5)
