"""Lets a process run for a share of the time, until this one ends: NUMBER PERIOD SHARE."""

import contextlib
import os
import signal
import sys
import time


def main() -> None:
    number, period, share = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with contextlib.suppress(ProcessLookupError):
        try:
            while True:
                time.sleep(period * share)
                os.kill(number, signal.SIGSTOP)
                time.sleep(period * (1.0 - share))
                os.kill(number, signal.SIGCONT)
        finally:
            os.kill(number, signal.SIGCONT)


if __name__ == "__main__":
    main()
