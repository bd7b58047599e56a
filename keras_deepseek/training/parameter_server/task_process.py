"""The program of a local TensorFlow worker or server: `ADDRESSES TASK_TYPE INDEX DESCRIPTOR`.

The chief starts it on its own machine. When it listens, it writes a byte to the descriptor.
"""

import contextlib
import json
import os
import sys
from collections.abc import Sequence

from keras_deepseek import backend


def main(arguments: Sequence[str]) -> None:
    """Serves until the process is killed.

    The arguments are the addresses of all processes as JSON, the type (`"worker"` or `"ps"`) and
    index of this one, and a file descriptor.
    """
    addresses, task_type, index, descriptor = arguments

    def tell() -> None:
        with contextlib.suppress(BrokenPipeError):  # After a restart, nobody reads it.
            os.write(int(descriptor), b"1")
        os.close(int(descriptor))

    backend.current().distribution.serve_task(json.loads(addresses), task_type, int(index), tell)


if __name__ == "__main__":
    main(sys.argv[1:])
