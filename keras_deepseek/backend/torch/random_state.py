"""The random number generators that PyTorch shares."""

import torch

from keras_deepseek.artifacts.signature import Array


def draw_seed() -> int:
    """Returns a seed for the order of data, by what Keras's users seed that order with."""
    return int(torch.randint(2**31, ()))  # As a `DataLoader` does.


def read_framework_random_state() -> dict[str, Array]:
    """Returns the state of the framework's own shared generators, as a copy."""
    state = {"cpu": torch.get_rng_state().numpy().copy()}
    for index in range(torch.cuda.device_count()):
        state[f"cuda:{index}"] = torch.cuda.get_rng_state(index).numpy().copy()
    return state


def write_framework_random_state(state: dict[str, Array]) -> None:
    """Puts the framework's own shared generators into a state that was read before."""
    torch.set_rng_state(torch.from_numpy(state["cpu"].copy()))
    for index in range(torch.cuda.device_count()):
        if f"cuda:{index}" in state:
            torch.cuda.set_rng_state(torch.from_numpy(state[f"cuda:{index}"].copy()), index)
