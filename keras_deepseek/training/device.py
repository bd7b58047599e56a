"""Which device a training runs on."""

import logging
from collections.abc import Callable, Mapping

from keras_deepseek.artifacts.argument_check import check_integer
from keras_deepseek.artifacts.errors import InvalidInputError, unknown_name_message

_logger = logging.getLogger(__name__)
_KINDS = ("cpu", "gpu", "tpu")


def choose_device(device_map: Mapping[str, int], count_devices: Callable[[str], int]) -> str:
    """Returns the device to train on, as in `"gpu:0"`.

    Args:
        device_map: For each kind of device (`"gpu"`, `"tpu"`, `"cpu"`) the index of the one to use.
            The first kind that this machine has is taken; where it has none of them, the CPU is.
        count_devices: Function from a kind to the number of such devices.

    Raises:
        InvalidInputError: A kind is unknown, or the machine has fewer devices than the index asks
            for.
    """
    if not isinstance(device_map, Mapping):
        raise InvalidInputError(
            f"`device_map` must be a dict, as in {{'gpu': 0}}; received {device_map!r}."
        )
    for kind, index in device_map.items():
        if kind not in _KINDS:
            raise InvalidInputError(unknown_name_message("device in device_map", kind, _KINDS))
        check_integer(f"device_map[{kind!r}]", index, least=0)
    for kind, index in device_map.items():
        count = count_devices(kind)
        if index < count:
            return f"{kind}:{index}"
        if count:
            raise InvalidInputError(
                f"device_map asks for {kind} {index}; this machine has {count}, counted from 0."
            )
    _logger.info("None of %s on this machine: training on the CPU.", list(device_map))
    return "cpu:0"


def default_kind(count_devices: Callable[[str], int]) -> str:
    """Returns the kind of device that Keras computes on where it is not told: `"gpu"`, say.

    Args:
        count_devices: Function from a kind to the number of such devices.
    """
    return next((kind for kind in ("tpu", "gpu") if count_devices(kind)), "cpu")


def device_of_rank(local_rank: int, count_devices: Callable[[str], int]) -> str | None:
    """Returns the GPU of one of several processes of a machine, as in `"gpu:1"`.

    Args:
        local_rank: integer. Which of the machine's processes it is, from 0.
        count_devices: Function from a kind to the number of such devices.

    Returns:
        `None` where a process sees one GPU or none: what started it has seen to that.
    """
    count = count_devices("gpu")
    return f"gpu:{local_rank % count}" if count > 1 else None
