"""The LoRA of routed experts in the form of `peft`, by the formula of its `ParamWrapper`."""

import json

import numpy as np
import pytest

from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.models import enable_lora, load_peft_adapter, save_peft_adapter
from keras_deepseek.models.checkpoints.weights_writer import write_tensors
from keras_deepseek.models.lora.lora_weights import read_tensors
from keras_deepseek.testing import assert_close
from tests.oracles.language_models import to_numpy
from tests.oracles.lora_models import compute, make_model, make_v4_model, tune
from tests.oracles.quantization import MODES

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
EXPERTS = ["expert_gate", "expert_up", "expert_down"]
NUM_EXPERTS, DIM, HIDDEN_DIM = 8, 24, 32

pytestmark = pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")


def changes_of(tensors, name, scale):
    """What `peft` adds to a parameter (experts, outputs, inputs)."""
    down, up = (tensors[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
    down = down.reshape(NUM_EXPERTS, -1, down.shape[-1])
    up = up.reshape(up.shape[0], -1, NUM_EXPERTS)
    return scale * np.einsum("ore,eri->eoi", up, down)


def read_experts(folder):
    """The weights of the experts in layer 1, in the shapes of the parameters in `transformers`."""
    tensors = read_tensors(folder / "model.safetensors")
    stem = "model.layers.1.mlp.experts"
    gate, up, down = (
        np.stack([tensors[f"{stem}.{i}.{x}_proj.weight"] for i in range(NUM_EXPERTS)])
        for x in ("gate", "up", "down")
    )
    return np.concatenate([gate, up], axis=1), down


def differ(model, folder):
    """How the adapter of a model changes the weights of its experts."""
    make_model().save_to_preset(folder / "plain")
    model.save_to_preset(folder / "merged")
    pairs = zip(read_experts(folder / "merged"), read_experts(folder / "plain"), strict=True)
    return [new - old for new, old in pairs]


def write_adapter(folder, shapes, **config):
    folder.mkdir()
    rng = np.random.default_rng(0)
    write_tensors(
        folder / WEIGHTS,
        {
            f"base_model.model.{name}": rng.normal(0, 0.1, size=shape).astype("float32")
            for name, shape in shapes.items()
        },
    )
    values = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, **config}
    (folder / CONFIG).write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (make_model, [*EXPERTS, "query_down"]),
        (make_model, ["expert_gate"]),
        (make_model, ["expert_up", "expert_down"]),
        (make_v4_model, EXPERTS),
    ],
    ids=["all", "gate", "up-down", "v4"],
)
def test_a_folder_comes_back(tmp_path, make, names):
    model = tune(make(), target_names=names)
    save_peft_adapter(model, tmp_path / "adapter")
    fresh = make()
    load_peft_adapter(fresh, tmp_path / "adapter")
    assert_close(compute(fresh), compute(model))
    for ours, theirs in zip(fresh.trainable_variables, model.trainable_variables, strict=True):
        assert ours.path == theirs.path
        assert_close(to_numpy(ours), to_numpy(theirs))
    load_peft_adapter(fresh, tmp_path / "adapter")
    assert_close(compute(fresh), compute(model))


def test_the_folder_is_what_peft_computes_with(tmp_path):
    model = tune(make_model(), target_names=EXPERTS)
    save_peft_adapter(model, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    stem = "model.layers.1.mlp.experts"
    assert config["target_parameters"] == [f"{stem}.down_proj", f"{stem}.gate_up_proj"]
    assert config["target_modules"] == []
    ranks, alphas = (
        {name.replace("\\", ""): value for name, value in config[f"{kind}_pattern"].items()}
        for kind in ("rank", "alpha")
    )
    assert ranks == {f"{stem}.down_proj": 2, f"{stem}.gate_up_proj": 4}
    tensors = read_tensors(tmp_path / "adapter" / WEIGHTS)
    for changed, name, module in zip(
        differ(model, tmp_path),
        ("gate_up_proj", "down_proj"),
        (f"{stem}.base_layer", stem),
        strict=True,
    ):
        parameter = f"{stem}.{name}"
        scale = alphas[parameter] / ranks[parameter]
        assert_close(changes_of(tensors, module, scale), changed, 1e-5)
    assert len(tensors) == 4


def test_an_adapter_that_peft_trained_is_read(tmp_path):
    """Its gate and up share an A."""
    stem = "model.layers.1.mlp.experts"
    shapes = {
        f"{stem}.base_layer.lora_A.weight": (3 * NUM_EXPERTS, DIM),
        f"{stem}.base_layer.lora_B.weight": (2 * HIDDEN_DIM, 3 * NUM_EXPERTS),
        f"{stem}.lora_A.weight": (3 * NUM_EXPERTS, HIDDEN_DIM),
        f"{stem}.lora_B.weight": (DIM, 3 * NUM_EXPERTS),
    }
    alpha = {r".*\.gate_up_proj": 12}
    folder = write_adapter(tmp_path / "a", shapes, alpha_pattern=alpha)
    model = make_model()
    load_peft_adapter(model, folder)
    assert len(model.trainable_variables) == 6
    tensors = read_tensors(folder / WEIGHTS)
    gate_up, down = differ(model, tmp_path)
    assert_close(changes_of(tensors, f"{stem}.base_layer", 12 / 3), gate_up, 1e-5)
    assert_close(changes_of(tensors, stem, 6 / 3), down, 1e-5)
    save_peft_adapter(model, tmp_path / "again")
    again = read_tensors(tmp_path / "again" / WEIGHTS)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor)


def test_an_adapter_of_a_linear_for_each_expert_is_read(tmp_path):
    """As `peft` wrote them on transformers 4."""
    stem = "model.layers.1.mlp.experts"
    shapes = {}
    for index in range(NUM_EXPERTS):
        shapes[f"{stem}.{index}.up_proj.lora_A.weight"] = (3, DIM)
        shapes[f"{stem}.{index}.up_proj.lora_B.weight"] = (HIDDEN_DIM, 3)
    folder = write_adapter(tmp_path / "a", shapes)
    model = make_model()
    load_peft_adapter(model, folder)
    assert [v.path.split("/")[-2] for v in model.trainable_variables] == ["expert_up"] * 2
    tensors = read_tensors(folder / WEIGHTS)
    gate_up, down = differ(model, tmp_path)
    assert not down.any()
    assert not gate_up[:, :HIDDEN_DIM].any()
    for index in range(NUM_EXPERTS):
        a, b = (tensors[f"base_model.model.{stem}.{index}.up_proj.lora_{x}.weight"] for x in "AB")
        assert_close(gate_up[index, HIDDEN_DIM:], 2 * b @ a, 1e-5)
    some = {name: shape for name, shape in shapes.items() if ".0." not in name}
    with pytest.raises(NotSupportedError, match=r"experts\.1\.up_proj.*some experts of a layer"):
        load_peft_adapter(make_model(), write_adapter(tmp_path / "some", some))


def test_a_lora_of_other_experts_is_refused(tmp_path):
    model = tune(make_model(), target_names=["expert_gate"])
    save_peft_adapter(tune(make_model(), target_names=EXPERTS), tmp_path / "all")
    with pytest.raises(NotSupportedError, match="that Keras layers can't have"):
        load_peft_adapter(model, tmp_path / "all")
    save_peft_adapter(tune(make_model(), 3, ["expert_gate"]), tmp_path / "wide")
    with pytest.raises(InvalidInputError, match=r"expert_gate .* do not fit"):
        load_peft_adapter(model, tmp_path / "wide")


def test_adapters_go_onto_int8_and_from_it(tmp_path):
    model = make_model()
    model.quantize("int8")
    tune(model, target_names=EXPERTS)
    save_peft_adapter(model, tmp_path / "adapter")
    other = make_model()
    other.quantize("int8")
    load_peft_adapter(other, tmp_path / "adapter")
    assert_close(compute(other), compute(model))
    packed = make_model()
    packed.quantize(**MODES["int4"])
    enable_lora(packed, 2, target_names=EXPERTS)
    with pytest.raises(NotSupportedError, match="is quantized to int4: write its LoRA"):
        save_peft_adapter(packed, tmp_path / "packed")
