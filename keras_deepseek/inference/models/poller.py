"""A thread that looks at something again and again, such as a folder of versions."""

import logging
import threading
from collections.abc import Callable

from keras_deepseek.errors import KerasDeepSeekError

_logger = logging.getLogger(__name__)


class Poller:
    """Calls `look` every `seconds` on a thread, until it is stopped.

    An error is logged once, and the next call comes nevertheless. `subject` says in the log what
    is looked at.
    """

    def __init__(self, look: Callable[[], object], seconds: float, subject: str) -> None:
        self._look = look
        self._seconds = seconds
        self._subject = subject
        self._trouble = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="poller", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread. Returns when a running call has ended."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self._look()
            # Any error, such as a missing disk, may be gone at the next look.
            except Exception as error:
                trouble = f"{type(error).__name__}: {error}"
                if trouble != self._trouble:
                    _logger.log(
                        logging.ERROR,
                        "Can't look at %s: %s",
                        *(self._subject, error),
                        exc_info=not isinstance(error, KerasDeepSeekError),
                    )
                self._trouble = trouble
            else:
                self._trouble = ""
