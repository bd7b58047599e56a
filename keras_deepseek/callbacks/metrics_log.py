"""Training logs as JSON lines."""

import os
from collections.abc import Sequence

from keras_deepseek.artifacts.json_lines import JsonLines, check_json_lines_path
from keras_deepseek.callbacks.step_logger import Row, StepLogger, numeric_logs


class MetricsLog(StepLogger):
    """Writes the logs of each step and epoch as a line of a `.jsonl` file.

    Choose it over `keras.callbacks.CSVLogger`, which writes only epochs, omits logs that first
    appear after the first epoch, and writes an epoch twice if a resumed training repeats it. Each
    line has

    | name | meaning |
    |---|---|
    | `step` | steps made since the start of the run |
    | `epoch` | the epoch, from 0, as Keras's own callbacks count |
    | `kind` | `"step"`, with Keras's means since the start of the epoch; or `"epoch"` |
    | `time` | seconds since 1970 |

    and then the logs. Numbers that are not finite are `null`.

    Args:
        path: string or path. The file. It ends in `.jsonl`.
        every: integer. The number of steps between two lines; 0 writes epochs only. Defaults to
            `1`.
        resume: boolean. If true, the training continues the run in the file, and replaces the steps
            that it repeats. `Trainer.fit(resume=True)` does so by itself. Defaults to `False`.

    Raises:
        InvalidInputError: `every` is negative; `path` has another suffix, can't be written, or has
            other contents; or the file holds an earlier run, the training starts at step 0 and
            `resume` is `False`.

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
        self._output = os.fspath(path)
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
                        **numeric_logs(row.logs),
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
