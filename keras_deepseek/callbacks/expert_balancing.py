"""Experts kept evenly loaded without a loss that pulls at the weights."""

from typing import Any

import keras
import numpy as np

from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.checks import check_number
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.layers.moe.expert_router import ExpertRouter

_LEVELS = ("layer", "expert")


class ExpertBalancing(keras.callbacks.Callback):
    """Moves the bias of every `ExpertRouter` against the load of the last step, and logs the load.

    Choose it over the router's `balance_loss`, or beside a small one: no gradient of an auxiliary
    loss disturbs the training. After each step it computes, for every router of the model,

    ```
    expert_bias += update_rate * sign(mean(expert_load) - expert_load)
    ```

    so that an expert with more than its share is chosen less. It adds to the logs of each step, and
    as their mean to those of the epoch:

    | name | meaning |
    |---|---|
    | `largest_expert_load` | largest load over the mean load, in the worst router: 1 is even |
    | `idle_expert_share` | share of the experts of all routers that no token went to |

    With `log_each` there is more, under the path of the router in the model:

    | `log_each` | name | meaning |
    |---|---|---|
    | `"layer"`, `"expert"` | `expert_load/PATH` | largest load over the mean load of this router |
    | `"expert"` | `expert_share/PATH/3` | the share of the router's load that expert 3 has |

    As logs of Keras they reach every callback behind this one: the run record, the events of
    TensorBoard, the lines of JSON.

    To log alone, take an `update_rate` of 0. Routers without a bias are logged alone too. With
    `steps_per_execution`, it acts once an execution, on the load of the last step in it.

    Args:
        update_rate: float. How far the bias moves in a step. Scores of `"sigmoid"` lie between 0
            and 1. Defaults to `0.001`.
        log_each: `"layer"`, `"expert"` or `None`. What is logged one by one, as above. Defaults to
            `None`.

    Raises:
        InvalidInputError: `update_rate` is negative or not finite, `log_each` is none of these, or
            the model has no router.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from keras_deepseek.callbacks import ExpertBalancing
    >>> from keras_deepseek.layers import DeepSeekMoE, ExpertRouter
    >>> layer = DeepSeekMoE(ExpertRouter(4, 1), intermediate_dim=2)
    >>> model = keras.Sequential([keras.Input((3,)), layer])
    >>> model.compile("sgd", "mse")
    >>> x = np.ones((8, 3))
    >>> history = model.fit(x, x, verbose=0, callbacks=[ExpertBalancing()])
    >>> history.history["largest_expert_load"]  # Equal tokens all go to one expert.
    [4.0]

    Reference:

    - [Auxiliary-Loss-Free Load Balancing (Wang et al., 2024)](https://arxiv.org/abs/2408.15664)
    """

    def __init__(self, update_rate: float = 0.001, log_each: str | None = None) -> None:
        super().__init__()
        if log_each not in (None, *_LEVELS):
            raise InvalidInputError(unknown_name_message("`log_each`", log_each, _LEVELS))
        self.log_each = log_each
        self.update_rate = check_number("update_rate", update_rate, least=0)
        self._routers: list[ExpertRouter] = []
        self._of_epoch: list[dict[str, float]] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Finds the routers."""
        layers = flatten_layers(self.model)
        self._routers = [layer for layer in layers if isinstance(layer, ExpertRouter)]
        if not self._routers:
            raise InvalidInputError(
                "The model has no `ExpertRouter`, so there is nothing to balance: leave "
                "ExpertBalancing out."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begins the means of the epoch."""
        self._of_epoch = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Moves the biases, and adds the load of the step to the logs."""
        # On JAX the training state lives outside of the variables during an epoch: `self.model`
        # brings it back, so that the loads are those of this step and the assignments hold.
        if self.model is None:
            return
        loads = [keras.ops.convert_to_numpy(router.expert_load) for router in self._routers]
        for router, load in zip(self._routers, loads, strict=True):
            if router.expert_bias is not None and self.update_rate:
                bias = keras.ops.convert_to_numpy(router.expert_bias)
                router.expert_bias.assign(bias + self.update_rate * np.sign(load.mean() - load))
        measured = _measure([load for load in loads if load.any()]) | self._measure_each(loads)
        if measured:
            self._of_epoch.append(measured)
        if logs is not None:
            logs.update(measured)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the means of the epoch's steps to the logs."""
        if logs is not None and self._of_epoch:
            names = {name: None for measured in self._of_epoch for name in measured}
            for name in names:
                logs[name] = float(np.mean([x[name] for x in self._of_epoch if name in x]))

    def _measure_each(self, loads: list[Any]) -> dict[str, float]:
        """Returns what `log_each` asks for, of the routers that saw a token."""
        measured: dict[str, float] = {}
        for router, load in zip(self._routers, loads, strict=True):
            if self.log_each is None or not load.any():
                continue
            path = router.expert_load.path.rpartition("/")[0]
            measured[f"expert_load/{path}"] = float(load.max() / load.mean())
            if self.log_each == "expert":
                shares = load / load.sum()
                measured |= {f"expert_share/{path}/{i}": float(x) for i, x in enumerate(shares)}
        return measured


def _measure(loads: list[Any]) -> dict[str, float]:
    """Returns the logs of a step; none where no router saw a token."""
    if not loads:
        return {}
    return {
        "largest_expert_load": max(float(load.max() / load.mean()) for load in loads),
        "idle_expert_share": float(np.mean(np.concatenate(loads) == 0)),
    }
