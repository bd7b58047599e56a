"""Weights that are views of the mapped files of a preset, on PyTorch; on the others, copies."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_deepseek import backend
from keras_deepseek.errors import CheckpointError
from keras_deepseek.inference import ServingEngine
from keras_deepseek.models import DeepSeekV3CausalLM, DeepSeekV3Config, enable_lora
from keras_deepseek.models.checkpoints import mapped_weights
from keras_deepseek.models.checkpoints.mapped_weights import is_on_local_disk
from tests.oracles.preset_model import SmallModel, make_model, read_weights_of, write_preset

IS_TORCH = keras.backend.backend() == "torch"
INPUTS = {
    "token_ids": np.array([[1, 2, 3, 4], [5, 6, 7, 0]], "int32"),
    "padding_mask": np.array([[1, 1, 1, 1], [1, 1, 1, 0]], "int32"),
}

on_torch = pytest.mark.skipif(not IS_TORCH, reason="Weights are views on PyTorch alone.")


@pytest.fixture(autouse=True)
def mounts(tmp_path, monkeypatch):
    """Makes the file system of the tests a local one."""
    path = tmp_path / "mountinfo"
    path.write_text("22 1 254:0 / / rw - ext4 /dev/vda rw\n")
    monkeypatch.setattr(mapped_weights, "_MOUNTS", path)
    return path


@pytest.fixture
def folder(tmp_path):
    make_model(1).save_to_preset(tmp_path / "preset")
    return tmp_path / "preset"


def predict(model):
    return keras.ops.convert_to_numpy(model(INPUTS))


def train(model):
    model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(True))
    model.fit(INPUTS, INPUTS["token_ids"], epochs=2, verbose=0)


def call_in_training(model):
    model(INPUTS, training=True)


def truncate(folder):
    os.truncate(folder / "model.safetensors", 64)


def shares_file(variable):
    """Returns True if Linux has mapped a file where a variable is in memory."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= variable.value.data_ptr() < last:
            return "model.safetensors" in line
    return False


def assert_same_weights(model, expected):
    pairs = zip(read_weights_of(model).values(), read_weights_of(expected).values(), strict=True)
    assert all(np.array_equal(array, other) for array, other in pairs)


def test_mapped_weights_have_the_numbers_of_the_file(folder):
    model = SmallModel.from_preset(folder)
    assert_same_weights(model, make_model(1))
    assert np.allclose(predict(model), predict(make_model(1)), atol=1e-6)


@on_torch
def test_weights_and_transposed_kernels_are_views_of_the_file(folder):
    model = SmallModel.from_preset(folder)
    layers = model.small_layers
    assert shares_file(layers["embedding"].embeddings)
    assert shares_file(layers["head"].kernel)
    assert shares_file(layers["mixer"].down.kernel)
    assert not shares_file(layers["mixer"].experts)  # One tensor for each in the file.


@on_torch
def test_tensors_that_are_not_aligned_in_the_file_are_copied(tmp_path):
    write_preset(tmp_path / "preset", make_model(1))
    path = tmp_path / "preset" / "model.safetensors"
    assert int.from_bytes(path.read_bytes()[:8], "little") % 4
    model = SmallModel.from_preset(tmp_path / "preset")
    assert not shares_file(model.small_layers["head"].kernel)
    assert_same_weights(model, make_model(1))


@on_torch
def test_weights_of_another_dtype_are_copied(folder):
    model = SmallModel.from_preset(folder, dtype="bfloat16")
    assert not shares_file(model.small_layers["head"].kernel)


@on_torch
def test_weights_on_a_network_file_system_are_copied(folder, mounts):
    mounts.write_text(mounts.read_text() + f"23 22 0:45 / {folder.parent} rw - nfs4 server:/ rw\n")
    model = SmallModel.from_preset(folder)
    assert not shares_file(model.small_layers["head"].kernel)
    truncate(folder)
    assert np.allclose(predict(model), predict(make_model(1)), atol=1e-6)


@pytest.mark.parametrize(
    ("lines", "is_local"),
    [
        (["/ - ext4"], True),
        (["/ - nfs"], False),
        (["/ - ext4", "/data - fuse.sshfs"], False),
        (["/data - nfs", "/ - ext4"], False),
        (["/data - nfs", "/data/my\\040models - xfs"], True),
        (["/data - xfs", "/data - cifs"], False),
        (["/ - ext4", "/dat - nfs"], True),
        ([], False),
    ],
    ids=["root", "network", "fuse", "order", "space", "covered", "prefix", "none"],
)
def test_the_innermost_mount_says_whether_a_disk_is_local(mounts, lines, is_local):
    parts = [line.split(" - ") for line in lines]
    mounts.write_text(
        "".join(f"1 2 0:1 / {point} rw shared:1 - {kind} x rw\n" for point, kind in parts)
    )
    assert is_on_local_disk(Path("/data/my models/model.safetensors")) == is_local


def test_without_a_list_of_mounts_no_disk_is_local(mounts, tmp_path):
    mounts.unlink()
    assert not is_on_local_disk(tmp_path)


@pytest.mark.parametrize("trains", [train, call_in_training], ids=["fit", "call"])
def test_training_copies_the_weights_and_leaves_the_file(folder, trains):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    model = SmallModel.from_preset(folder)
    reference = make_model(1)
    trains(model)
    trains(reference)
    for received, expected in zip(
        read_weights_of(model).values(), read_weights_of(reference).values(), strict=True
    ):
        assert np.allclose(received, expected, atol=1e-6)
    assert path.read_bytes() == content
    truncate(folder)
    assert np.allclose(predict(model), predict(reference), atol=1e-5)


def test_assigned_weights_leave_the_file(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    model = SmallModel.from_preset(folder)
    model.set_weights([weight * 0 + 1 for weight in model.get_weights()])
    assert path.read_bytes() == content
    assert np.all(keras.ops.convert_to_numpy(model.small_layers["head"].kernel) == 1)


@on_torch
def test_a_lora_is_trained_beside_weights_that_stay_mapped(folder):
    model = SmallModel.from_preset(folder)
    enable_lora(model, rank=2, target_names=["gate", "value"])
    kernel = model.small_layers["mixer"].gate._kernel
    assert shares_file(kernel)
    before = keras.ops.convert_to_numpy(kernel)
    train(model)
    assert shares_file(kernel)
    assert np.array_equal(keras.ops.convert_to_numpy(kernel), before)


def test_a_model_is_saved_over_its_own_folder(folder):
    model = SmallModel.from_preset(folder)
    expected = predict(model)
    for _ in range(2):
        model.save_to_preset(folder)
    assert np.array_equal(predict(model), expected)
    assert_same_weights(SmallModel.from_preset(folder), make_model(1))


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_mapped_weights_are_quantized_as_others(folder, mode):
    model, reference = SmallModel.from_preset(folder), make_model(1)
    for quantized in (model, reference):
        quantized.small_layers["mixer"].dtype_policy = keras.dtype_policies.DTypePolicy("float32")
        quantized.quantize(mode)
    for array, other in zip(model.get_weights(), reference.get_weights(), strict=True):
        assert np.array_equal(array, other)
    truncate(folder)
    assert np.allclose(predict(model), predict(reference), atol=1e-6)


@on_torch
@pytest.mark.parametrize(
    "use",
    [
        predict,
        call_in_training,
        lambda model: model.quantize("int8"),
        lambda model: model.save("model.keras"),
        lambda model: model.save_to_preset("preset"),
        lambda model: model.save_weights("model.weights.h5"),
        lambda model: model.get_weights(),
    ],
    ids=[
        *("call", "training", "quantize", "save", "save_to_preset"),
        *("save_weights", "get_weights"),
    ],
)
def test_a_file_that_was_written_in_place_is_an_error(folder, use):
    model = SmallModel.from_preset(folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(content)
    os.utime(folder / "model.safetensors", ns=(1, 1))
    with pytest.raises(CheckpointError, match="was changed in place, and the model reads"):
        use(model)


def make_decoder(folder, dtype):
    config = DeepSeekV3Config.from_preset("tiny", vocabulary_size=40)
    DeepSeekV3CausalLM(config).save_to_preset(folder, dtype=dtype)
    return DeepSeekV3CausalLM.from_preset(folder, dtype=dtype)


@on_torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_are_generated_from_views_that_are_not_slower(tmp_path, dtype):
    model = make_decoder(tmp_path / "decoder", dtype)
    copied = DeepSeekV3CausalLM.from_preset(tmp_path / "decoder", dtype=dtype)
    copied.mapped_weights.copy_all()
    prompt = np.array([[1, 2, 3]])
    expected = copied.generate(prompt, max_new_tokens=4)
    assert np.array_equal(model.generate(prompt, max_new_tokens=4), expected)
    assert shares_file(model.backbone.token_embedding.embeddings)
    kernels = [variable for variable in model.weights if len(variable.shape) == 2]
    transposed = [variable for variable in kernels if not variable.value.is_contiguous()]
    assert bool(transposed) == (dtype == "bfloat16")  # A float32 one would be slower.
    truncate(tmp_path / "decoder")
    with pytest.raises(CheckpointError, match="was changed in place"):
        model.generate(prompt, max_new_tokens=4)
    with pytest.raises(CheckpointError, match="was changed in place"):
        model.backbone({"token_ids": prompt, "padding_mask": np.ones_like(prompt)})


@on_torch
def test_a_model_loaded_in_inference_mode_is_mapped_too(folder):
    import torch

    with torch.inference_mode():
        model = SmallModel.from_preset(folder)
        assert shares_file(model.small_layers["head"].kernel)
        model.mapped_weights.copy_all()
    assert_same_weights(model, make_model(1))


@on_torch
def test_a_served_model_does_not_depend_on_the_file(folder):
    model = SmallModel.from_preset(folder)
    expected = predict(model)
    with ServingEngine(model) as engine:
        truncate(folder)
        assert np.allclose(engine.predict(INPUTS), expected, atol=1e-6)


PROGRAM = """
import os, pathlib, shutil, sys
import numpy as np
from keras_deepseek.errors import CheckpointError
from keras_deepseek.models.checkpoints import mapped_weights
from tests.models.checkpoints.mapped_weights_test import predict
from tests.oracles.preset_model import SmallModel, make_model

mapped_weights.is_on_local_disk = lambda path: True
work = pathlib.Path(sys.argv[1])

def overwrite(path):
    path.write_bytes(bytes(path.stat().st_size))

def replace(path):
    path.with_name("new").write_bytes(b"other")
    path.with_name("new").replace(path)

changes = {
    "replaced": replace,
    "deleted": pathlib.Path.unlink,
    "without its folder": lambda path: shutil.rmtree(path.parent),
    "truncated": lambda path: os.truncate(path, 0),
    "overwritten": overwrite,
}
for name, change in changes.items():
    source = make_model(1, vocabulary_size=5000)
    source.save_to_preset(work / name)
    path = work / name / "model.safetensors"
    os.utime(path, ns=(1, 1))
    model = SmallModel.from_preset(work / name)
    change(path)
    try:
        is_same = np.allclose(predict(model), predict(source), atol=1e-6)
        print(name, "unaffected" if is_same else "WRONG")
    except CheckpointError as error:
        print(name, "error")
"""


def test_no_change_of_the_file_beneath_a_model_ends_the_process_or_changes_numbers(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    in_place = "error" if IS_TORCH else "unaffected"
    assert result.stdout.splitlines() == [
        "replaced unaffected",
        "deleted unaffected",
        "without its folder unaffected",
        f"truncated {in_place}",
        f"overwritten {in_place}",
    ]


def test_only_arrays_of_a_plain_layout_and_the_same_dtype_are_viewed():
    variable = keras.Variable(np.zeros((4, 6), "float32"))
    source = np.arange(48.0, dtype="float32").reshape(4, 12)
    view_array = backend.current().compute.view_array
    assert not view_array(variable, source[:, ::2])  # It has gaps.
    assert not view_array(variable, source[:, :6].astype("float64"))
    assert not view_array(variable, source[::-1, :6])
    assert view_array(variable, np.ascontiguousarray(source[:, :6].T).T) == IS_TORCH
    assert not np.any(keras.ops.convert_to_numpy(variable)) or IS_TORCH
    if IS_TORCH:
        assert np.array_equal(keras.ops.convert_to_numpy(variable), source[:, :6])
