import gc
import weakref

from keras_deepseek.inference.models.failed_version import MOST_CHARACTERS, FailedVersion


class Model:
    pass


def test_why_stays_and_nothing_that_was_there():
    model = Model()
    held = weakref.ref(model)

    def run(model):
        raise ValueError("no", model)

    try:
        run(model)
    except ValueError as error:
        failed = FailedVersion.of(3, error)
    del model
    gc.collect()
    assert (failed.number, failed.state, failed.kind) == (3, "END", "ValueError")
    assert failed.error.startswith("ValueError: ('no', ")
    assert held() is None


def test_of_a_long_error_the_beginning_is_kept():
    assert len(FailedVersion.of(3, ValueError("no" * MOST_CHARACTERS)).error) == MOST_CHARACTERS
