"""The choice of the devices that a training runs on."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from keras_deepseek.checks import check_integer
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.training.cluster.layer_devices import check_pattern

_logger = logging.getLogger(__name__)
_KINDS = ("cpu", "gpu", "tpu")

DeviceMap: TypeAlias = Mapping[str, int | list[int]] | Mapping[str, str]


def choose_devices(device_map: DeviceMap, count_devices: Callable[[str], int]) -> list[str]:
    """Returns the devices to train on, such as `["gpu:0"]`.

    The map has, for each kind of device (`"gpu"`, `"tpu"`, `"cpu"`), the index of the one to use,
    or a list of them. If it has several kinds, those that this machine lacks are left out; if all
    are missing, the CPU is used with a warning. A single kind that is missing is an error.
    """
    _check_dict(device_map)
    indices_by_kind: dict[str, list[int]] = {}
    for kind, setting in device_map.items():
        if kind not in _KINDS:
            raise InvalidInputError(
                unknown_name_message("device in device_map", kind, _KINDS)
                + f" If {kind!r} is a pattern of layer names, its value must be a device, as in "
                f"{{{kind!r}: 'gpu:0'}}; received {setting!r}."
            )
        indices: list[Any] = list(setting) if isinstance(setting, list | tuple) else [setting]
        name = f"device_map[{kind!r}]"
        indices_by_kind[kind] = [check_integer(name, index, minimum=0) for index in indices]
        if not indices or len(set(indices)) < len(indices):
            raise InvalidInputError(
                f"`{name}` must be one index or a list of different ones; received {setting!r}."
            )
    counts = {kind: count_devices(kind) for kind in _KINDS}
    available = _list_devices(count_devices)
    for kind, indices in indices_by_kind.items():
        if counts[kind] and max(indices) >= counts[kind]:
            raise InvalidInputError(
                f"device_map has {kind}:{max(indices)}, but this machine has "
                f"{', '.join(available)}."
            )
    missing = [kind for kind in indices_by_kind if not counts[kind]]
    if missing and len(indices_by_kind) == 1:
        raise InvalidInputError(
            f"device_map is {dict(device_map)}, but this machine has {', '.join(available)}. Name "
            "one of these, as in {'cpu': 0}, or leave device_map out."
        )
    devices = [
        f"{kind}:{index}"
        for kind, indices in indices_by_kind.items()
        for index in indices
        if counts[kind]
    ]
    if missing:
        _logger.log(
            logging.INFO if devices else logging.WARNING,
            "device_map has %s, but this machine has %s: training on %s.",
            *(", ".join(names) for names in (missing, available, devices or ["cpu:0"])),
        )
    return devices or ["cpu:0"]


def choose_layer_devices(
    device_map: DeviceMap, count_devices: Callable[[str], int]
) -> dict[str, str] | None:
    """Returns the device for each pattern of layer names; `None` for a map of device kinds.

    The map has the device for each pattern, as in `{"encoder*": "gpu:0"}`.
    """
    _check_dict(device_map)
    patterns = [
        key
        for key, device in device_map.items()
        if key not in _KINDS and isinstance(key, str) and isinstance(device, str)
    ]
    if not patterns:
        return None
    kinds = [kind for kind in _KINDS if kind in device_map]
    if kinds:
        raise InvalidInputError(
            f"device_map has both a pattern of layer names, {patterns[0]!r}, and a kind of device, "
            f"{kinds[0]!r}. Use only patterns, as in {{'encoder*': 'gpu:0', 'decoder*': 'gpu:1'}}, "
            "or only kinds, as in {'gpu': [0, 1]}."
        )
    available = _list_devices(count_devices)
    for pattern, device in device_map.items():
        if device not in available:
            raise InvalidInputError(
                f"device_map[{pattern!r}] is {device!r}, but this machine has "
                f"{', '.join(available)}."
            )
        check_pattern(pattern)
    return {pattern: str(device) for pattern, device in device_map.items()}


def _check_dict(device_map: Any) -> None:
    if not isinstance(device_map, Mapping):
        raise InvalidInputError(
            "`device_map` must be a dict, as in {'gpu': 0} or {'encoder*': 'gpu:0'}; received "
            f"{device_map!r}."
        )


def _list_devices(count_devices: Callable[[str], int]) -> list[str]:
    return [f"{kind}:{index}" for kind in _KINDS for index in range(count_devices(kind))]


def default_kind(count_devices: Callable[[str], int]) -> str:
    """Returns the kind of device that Keras computes on by default, such as `"gpu"`."""
    return next((kind for kind in ("tpu", "gpu") if count_devices(kind)), "cpu")


def device_of_rank(local_rank: int, count_devices: Callable[[str], int]) -> str | None:
    """Returns the GPU, such as `"gpu:1"`, that a rank uses among those of its machine.

    It is `None` if the process sees at most one GPU, because its launcher has assigned it.
    """
    count = count_devices("gpu")
    return f"gpu:{local_rank % count}" if count > 1 else None
