"""Peak performance of well-known accelerators."""

import re

# Floating-point operations a second of one device, in bfloat16 or float16 with float32 sums, for
# dense matrices (vendors' larger figures are for sparse ones). Sources: NVIDIA's data sheet of each
# product, and its white papers of the Ampere, Ada and Blackwell architectures for GeForce; AMD's
# data sheet of the MI300X; Google's "System architecture" of Cloud TPU, where a device of v2 and v3
# is one of the chip's two cores. The first matching name is used.
_PEAKS = {
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "T4": 65e12,
    "V100-PCIE": 112e12,
    "V100": 125e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165.2e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 61.5e12,
    "TPU v2": 22.5e12,
}


def find_peak_flops(device_name: str | None) -> float | None:
    """Returns an accelerator's peak in half precision, in operations a second.

    It is found by the framework's name of the device, and `None` for a CPU or an unknown device.
    """
    for name, peak in _PEAKS.items():
        # Whole words only: an A10G is not an A10, and a laptop's RTX 4090 is not a desktop's.
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w| Laptop| Max-Q| D\b)", device_name or ""):
            return peak
    return None
