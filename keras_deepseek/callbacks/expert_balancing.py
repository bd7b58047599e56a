"""Balances the load of experts without an auxiliary loss."""

from typing import Any

import keras
import numpy as np

from keras_deepseek.backend.keras_private.layers import flatten_layers
from keras_deepseek.checks import check_number
from keras_deepseek.errors import InvalidInputError, unknown_name_message
from keras_deepseek.layers.moe.expert_router import ExpertRouter

_LEVELS = ("layer", "expert")


class ExpertBalancing(keras.callbacks.Callback):
    """Adjusts the bias of every `ExpertRouter` by the load of the last step, and logs the load.

    Choose it over the router's `balance_loss`, or together with a small one: no gradient of an
    auxiliary loss disturbs the training. After each step it computes, for every router,

    ```
    expert_bias += update_rate * sign(mean(expert_load) - expert_load)
    ```

    so that an expert with more than its share is chosen less often. It adds these numbers to the
    logs of each step, and their means to the logs of the epoch:

    | name | meaning |
    |---|---|
    | `largest_expert_load` | largest load over the mean load, in the worst router; 1 is even |
    | `idle_expert_share` | share of the experts of all routers that got no token |

    With `log_each` it also logs, by the path of the router in the model:

    | `log_each` | name | meaning |
    |---|---|---|
    | `"layer"`, `"expert"` | `expert_load/PATH` | largest load over the mean load of this router |
    | `"expert"` | `expert_share/PATH/3` | expert 3's share of the router's load |

    Callbacks after this one in the list see these logs: put `RunRecorder`, `TensorBoardEvents` and
    `MetricsLog` after it.

    With an `update_rate` of 0, and for routers without a bias, it only logs. With
    `steps_per_execution` it acts once per execution, on the load of its last step.

    Args:
        update_rate: float. The change of the bias in a step. Scores of `"sigmoid"` lie between 0
            and 1. Defaults to `0.001`.
        log_each: `"layer"`, `"expert"` or `None`. The detail of the logs, as above. Defaults to
            `None`.

    Raises:
        InvalidInputError: `update_rate` is negative or not finite, `log_each` is unknown, or the
            model has no router.

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
            raise InvalidInputError(unknown_name_message("log_each", log_each, _LEVELS))
        self.log_each = log_each
        self.update_rate = check_number("update_rate", update_rate, minimum=0)
        self._routers: list[ExpertRouter] = []
        self._of_epoch: list[dict[str, float]] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Collects the model's expert routers, which the callback balances."""
        layers = flatten_layers(self.model)
        self._routers = [layer for layer in layers if isinstance(layer, ExpertRouter)]
        if not self._routers:
            raise InvalidInputError(
                "The model has no `ExpertRouter` to balance. Remove ExpertBalancing from the "
                "callbacks."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Resets the means of the epoch."""
        self._of_epoch = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Updates the biases, and adds the load of the step to the logs."""
        # On JAX the training state is outside of the variables during an epoch. Reading
        # `self.model` writes it back: loads are then those of this step, and assignments last.
        if self.model is None:
            return
        loads = [keras.ops.convert_to_numpy(router.expert_load) for router in self._routers]
        for router, load in zip(self._routers, loads, strict=True):
            if router.expert_bias is not None and self.update_rate:
                bias = keras.ops.convert_to_numpy(router.expert_bias)
                router.expert_bias.assign(bias + self.update_rate * np.sign(load.mean() - load))
        used = [load for load in loads if load.any()]  # Of routers that got a token.
        measured = _measure(used) | self._measure_each(loads)
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
        """Returns the expert load logs of each router that got a token, as `log_each` asks."""
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
    """Returns the load balance logs of a step; empty if no router got a token."""
    if not loads:
        return {}
    return {
        "largest_expert_load": max(float(load.max() / load.mean()) for load in loads),
        "idle_expert_share": float(np.mean(np.concatenate(loads) == 0)),
    }
