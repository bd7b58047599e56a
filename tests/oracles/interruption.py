"""A training that ends in its middle: what stands for a process that is killed, or asked to end."""

import signal

import keras


class KilledError(Exception):
    """What stands for the end of the process without a word."""


class EndAt(keras.callbacks.Callback):
    """Ends the training after a step: by an error, or by SIGTERM."""

    def __init__(self, step, how=KilledError):
        super().__init__()
        self.left, self.how = step, how

    def get_state(self):
        """Counts the steps of this process alone."""

    def set_state(self, state):
        pass

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            if self.how is KilledError:
                raise KilledError
            signal.raise_signal(signal.SIGTERM)
