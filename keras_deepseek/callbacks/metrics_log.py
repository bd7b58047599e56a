"""Writes the logs of a training as JSON lines."""

import os
from collections.abc import Sequence

from keras_deepseek.artifacts.json_lines import JsonLines, check_json_lines_path
from keras_deepseek.callbacks.step_logger import Row, StepLogger, numbers


class MetricsLog(StepLogger):
    """Writes the logs of each step and epoch as a line of a `.jsonl` file.

    Choose it over `keras.callbacks.CSVLogger`, which writes epochs alone, leaves out what is logged
    for the first time after the first epoch, and has an epoch twice that was made twice in a
    training that was resumed. Each line has

    | name | meaning |
    |---|---|
    | `step` | steps made since the start of the run |
    | `epoch` | the epoch, from 0, as Keras's own callbacks count |
    | `kind` | `"step"`, whose logs Keras has as means since the start of the epoch; or `"epoch"` |
    | `time` | seconds since 1970 |

    and then the logs. NaN and infinity are `null`.

    Args:
        path: string or path. The file, which ends in `.jsonl`.
        every: integer. Write every so many steps; 0 for epochs alone. Defaults to `1`.
        resume: boolean. Whether the training goes on with the run that the file holds, also where
            it makes its first steps anew. `Trainer.fit(resume=True)` sees to it. Defaults to
            `False`.

    Raises:
        InvalidInputError: `every` is negative; or `path` has another ending, can't be written, or
            holds something else. When a training starts at step 0 and `resume` is `False`: the file
            holds an earlier run.

    Example:

    >>> import tempfile, keras, numpy as np
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> path = tempfile.mkdtemp() + "/log.jsonl"
    >>> x, y = np.ones((8, 2)), np.ones((8, 1))
    >>> history = model.fit(x, y, batch_size=4, verbose=0, callbacks=[MetricsLog(path)])
    >>> import json, pathlib
    >>> lines = pathlib.Path(path).read_text().splitlines()
    >>> [(row["kind"], row["step"]) for row in map(json.loads, lines)]
    [('step', 1), ('step', 2), ('epoch', 2)]
    """

    def __init__(
        self, path: str | os.PathLike[str], *, every: int = 1, resume: bool = False
    ) -> None:
        super().__init__(every=every, resume=resume)
        check_json_lines_path(path)
        self.path = path
        self._file: JsonLines | None = None

    def _open(self) -> None:
        self._file = JsonLines(self.path)

    def _write(self, rows: Sequence[Row]) -> None:
        if self._file is not None:
            self._file.append(
                [
                    {
                        "step": row.step,
                        "epoch": row.epoch,
                        "kind": "epoch" if row.ends_epoch else "step",
                        "time": row.time,
                        **numbers(row.logs),
                    }
                    for row in rows
                ]
            )

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _last_step(self) -> int | None:
        rows = [] if self._file is None else self._file.read()
        return max((int(row["step"]) for row in rows), default=None)

    def _discard_after(self, step: int) -> None:
        if self._file is not None:
            self._file.keep(lambda row: int(row["step"]) <= step)

    def _earlier_run_message(self) -> str:
        return (
            f"{os.fspath(self.path)!r} holds an earlier run, and this one starts anew: name "
            "another file, or remove that one."
        )
