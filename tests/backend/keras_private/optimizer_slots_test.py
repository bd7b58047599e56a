import keras
import pytest

from keras_deepseek.backend.keras_private.optimizer_slots import making_slots, weight_slots


def make_weights():
    return [keras.Variable([[1.0, 2.0]], name="kernel"), keras.Variable([1.0], name="bias")]


@pytest.mark.parametrize(
    ("name", "options", "number"),
    [
        ("SGD", {"momentum": 0.9}, 1),
        ("AdamW", {"use_ema": True, "amsgrad": True}, 4),
        ("Adam", {"gradient_accumulation_steps": 2}, 3),
        ("Muon", {}, 1),
    ],
)
def test_each_slot_is_found_with_its_weight(name, options, number):
    optimizer, weights = getattr(keras.optimizers, name)(**options), make_weights()
    optimizer.build(weights)
    found = weight_slots(optimizer)
    assert len(found) >= number * len(weights)
    assert all(tuple(slot.shape) == tuple(weight.shape) for slot, weight in found)
    shared = [each for each in optimizer.variables if id(each) not in {id(s) for s, _ in found}]
    assert {variable.name for variable in shared} <= {"iteration", "learning_rate"}


def test_a_function_makes_them_until_the_block_ends():
    optimizer, weights, made = keras.optimizers.Adam(), make_weights(), []

    def make(weight, make_slot):
        made.append((weight.name, make_slot()))
        return made[-1][1]

    with making_slots(optimizer, make):
        optimizer.build(weights)
    assert "add_variable_from_reference" not in vars(optimizer)
    assert {name for name, _ in made} == {"kernel", "bias"}
    assert {id(slot) for slot, _ in weight_slots(optimizer)} == {id(slot) for _, slot in made}
