import pytest

from keras_deepseek.callbacks.training_flops import find_peak_flops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Tesla T4", 65e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("TPU v5 lite", 197e12),
        ("TPU v4", 275e12),
    ],
)
def test_well_known_accelerators(name, peak):
    assert find_peak_flops(name) == peak


@pytest.mark.parametrize(
    "name", [None, "", "NVIDIA A10G", "NVIDIA A1000", "NVIDIA GeForce RTX 4090 Laptop GPU", "cpu"]
)
def test_others_have_none(name):
    assert find_peak_flops(name) is None
