"""SavedModel files written from JAX."""

import warnings

from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.backend.export.random_batch import Shapes, with_named_axes
from keras_deepseek.backend.export.saved_model_writer import ServingSignatures, save_as_saved_model
from keras_deepseek.backend.protocols.inference import Export


class JaxExport(Export):
    """Implements `Export` by JAX."""

    def write_saved_model(
        self, model: NamedModel, path: str, signatures: ServingSignatures
    ) -> None:
        def write(shapes: Shapes) -> None:
            options = {"polymorphic_shapes": [_polymorphic(shapes)]}
            save_as_saved_model(model, path, signatures, jax2tf_kwargs=options)

        with warnings.catch_warnings():
            # Keras uses a deprecated option of jax2tf.
            warnings.filterwarnings("ignore", ".*native_serialization", DeprecationWarning)
            with_named_axes(model.signature, write)


def _polymorphic(shapes: Shapes) -> dict[str, str]:
    """Converts input shapes to the strings of jax2tf, with symbols for free axes.

    JAX would read a name such as `left-right_axis_1` as a difference.
    """
    names = dict.fromkeys(size for shape in shapes.values() for size in shape)
    symbols = {name: f"axis_{index}" for index, name in enumerate(names) if isinstance(name, str)}
    return {
        name: ", ".join(symbols[size] if isinstance(size, str) else str(size) for size in shape)
        for name, shape in shapes.items()
    }
