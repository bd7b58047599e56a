"""The check that a model's graph can be optimized for its training step."""

import keras

from keras_deepseek.errors import InvalidInputError, NotSupportedError
from keras_deepseek.graph.optimized_model import OptimizedModel
from keras_deepseek.training.cluster.placement import Placement


def check_optimizable(model: keras.Model, placement: Placement, *, uses_servers: bool) -> None:
    """Raises an error if `optimize_graph` does not fit the model or its devices.

    Raises:
        InvalidInputError: The model is optimized already.
        NotSupportedError: Devices or servers divide the model.
    """
    if isinstance(model, OptimizedModel):
        raise InvalidInputError(
            f"Model {model.name!r} is optimized already: leave optimize_graph out. It trains by "
            "programs if it was made by graph.optimize(..., mode='train')."
        )
    dividers = {
        "a parameter server": uses_servers,
        "devices for layers (device_map)": placement.layers is not None,
        "ModelParallel": isinstance(placement.distribution, keras.distribution.ModelParallel),
    }
    for name, is_used in dividers.items():
        if is_used:
            raise NotSupportedError(
                f"optimize_graph=True makes one program of the model, but {name} divides the "
                "model. Leave one of the two out."
            )
