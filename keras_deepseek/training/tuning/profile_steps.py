"""The profile of some steps whose effects are undone."""

from pathlib import Path
from typing import Any

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.step.step_profile import StepProfile
from keras_deepseek.training.step.step_profiler import STEPS, StepProfiler
from keras_deepseek.training.tuning.short_training import ShortTraining

_WARM_UP = 2  # The first step compiles, and the second may allocate.


def profile_steps(
    profiler: StepProfiler, training: ShortTraining, trace_file: Path, data: dict[str, Any]
) -> StepProfile:
    """Profiles steps on data, and restores the model; see `Trainer.profile`."""
    results: list[StepProfile | Exception] = []
    with training.restored_state():
        profiler.request(trace_file, results.append, skip=_WARM_UP)
        training.fit(_WARM_UP + STEPS, [profiler], **data)
    if not results:
        raise InvalidInputError(
            f"The data ended before {_WARM_UP + STEPS} batches, which a profile needs. Use a "
            "generator that goes on."
        )
    (result,) = results
    if isinstance(result, Exception):
        raise result
    return result
