"""A worker or a server of TensorFlow's: `ADDRESSES TASK_TYPE INDEX DESCRIPTOR`.

The chief of a cluster on one machine starts each as a program; a byte at the descriptor says that
it listens.
"""

import contextlib
import json
import os
import sys
from collections.abc import Sequence

from keras_deepseek import backend


def main(arguments: Sequence[str]) -> None:
    """Serves until the process is ended.

    Args:
        arguments: The addresses of all tasks as JSON, the type and the index of this one, and a
            file descriptor.
    """
    addresses, task_type, index, descriptor = arguments

    def tell() -> None:
        with contextlib.suppress(BrokenPipeError):  # Nobody waits for one that was started again.
            os.write(int(descriptor), b"1")
        os.close(int(descriptor))

    backend.current().distribution.serve_task(json.loads(addresses), task_type, int(index), tell)


if __name__ == "__main__":
    main(sys.argv[1:])
