"""The writing of checkpoints in the background, while the training continues."""

import threading

from keras_deepseek.artifacts.checkpoint import Checkpoint
from keras_deepseek.artifacts.checkpoint_folder import CheckpointFolder


class CheckpointWriter:
    """Writes checkpoints one at a time in a background thread."""

    def __init__(self, folder: CheckpointFolder) -> None:
        self.folder = folder
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def submit(self, checkpoint: Checkpoint) -> None:
        """Starts writing a checkpoint in the background, after the previous one is written.

        Its arrays must not change any more. Raises the error of the previous one, if it failed.
        """
        self.finish()
        self._thread = threading.Thread(
            target=self._write, args=[checkpoint], name="checkpoint", daemon=True
        )
        self._thread.start()

    def check(self) -> None:
        """Raises the error of a failed write, without waiting for one that is running."""
        if self._thread is None or not self._thread.is_alive():
            self.finish()

    def finish(self) -> None:
        """Waits until the last checkpoint is on the disk, and raises its error if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            self.folder.write(checkpoint)
        except Exception as error:  # noqa: BLE001 - `finish` raises it in the training.
            self._error = error
