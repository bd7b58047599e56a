"""Runs the command line as `python -m keras_deepseek COMMAND ...`."""

import sys

from keras_deepseek.cli import main

if __name__ == "__main__":
    sys.exit(main())
