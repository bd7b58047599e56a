import keras
import pytest

from keras_deepseek.errors import CheckpointError, InvalidInputError
from keras_deepseek.models import enable_lora, load_lora_weights, save_lora_weights
from keras_deepseek.testing import assert_close
from tests.oracles.language_models import to_numpy
from tests.oracles.lora_models import compute, make_model, tune


def test_the_lora_alone_is_saved_and_loaded(tmp_path):
    model = tune(make_model(num_prediction_layers=1))
    path = tmp_path / "tuned.safetensors"
    save_lora_weights(model, path)
    assert path.stat().st_size < 0.5 * 4 * model.count_params()
    for other in (make_model(num_prediction_layers=1), make_model(num_prediction_layers=1)):
        load_lora_weights(other, path)
        assert_close(compute(other), compute(model))
        assert len(other.trainable_variables) == len(model.trainable_variables)
        load_lora_weights(other, path)  # Again, where it has one.
        assert_close(compute(other), compute(model))


def test_that_of_another_model_is_refused_and_nothing_changes(tmp_path):
    path = tmp_path / "tuned.safetensors"
    save_lora_weights(tune(make_model(num_layers=3)), path)
    model = make_model()
    old_logits = compute(model)
    with pytest.raises(InvalidInputError, match=r"layer_2/attention/query_down.*not in the model"):
        load_lora_weights(model, path)
    wider = make_model(num_layers=3, query_lora_rank=20)
    with pytest.raises(InvalidInputError, match=r"query_down \(\(24, 2\) and \(2, 24\)\).*not fit"):
        load_lora_weights(wider, path)
    assert_close(compute(model), old_logits)
    assert len(model.trainable_variables) == len(make_model().trainable_variables)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((3, 4.0), "do not fit"), ((2, 8.0), "do not fit"), ((2, 4.0, ["gate"]), "not in the model")],
    ids=["rank", "alpha", "layers"],
)
def test_another_lora_than_the_models_is_refused(tmp_path, arguments, message):
    path = tmp_path / "tuned.safetensors"
    save_lora_weights(tune(make_model(), target_names=["output"]), path)
    model = make_model()
    rank, alpha, *names = arguments
    enable_lora(model, rank, alpha, *(names or [["output"]]))
    with pytest.raises(InvalidInputError, match=message):
        load_lora_weights(model, path)


def test_bad_files_and_names(tmp_path):
    model = make_model()
    path = tmp_path / "tuned.safetensors"
    with pytest.raises(InvalidInputError, match="has no LoRA"):
        save_lora_weights(model, path)
    with pytest.raises(CheckpointError, match="can't be read"):
        load_lora_weights(model, path)
    with pytest.raises(InvalidInputError, match=r"must end in '\.safetensors'"):
        load_lora_weights(model, tmp_path)
    tune(model)
    save_lora_weights(model, path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="damaged"):
        load_lora_weights(model, path)
    model.save_to_preset(tmp_path / "preset")
    with pytest.raises(CheckpointError, match="holds no LoRA"):
        load_lora_weights(model, tmp_path / "preset" / "model.safetensors")


def test_embeddings_and_plain_models(tmp_path):
    def build():
        return keras.Sequential(
            [
                keras.Input((4,), dtype="int32"),
                keras.layers.Embedding(31, 5, name="table"),
                keras.layers.Dense(3, name="score"),
            ]
        )

    model, other = build(), build()
    other.set_weights(model.get_weights())
    enable_lora(model, 2, target_names=["table", "score"])
    for variable in model.trainable_variables:
        variable.assign(keras.ops.ones(variable.shape))
    save_lora_weights(model, tmp_path / "a.safetensors")
    load_lora_weights(other, tmp_path / "a.safetensors")
    tokens = keras.ops.arange(4)[None]
    assert_close(to_numpy(other(tokens)), to_numpy(model(tokens)))
