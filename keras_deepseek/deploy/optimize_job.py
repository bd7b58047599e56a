"""Graph optimization of the model of an export."""

import contextlib
from collections.abc import Callable
from dataclasses import replace

from keras_deepseek.backend.export.named_model import NamedModel
from keras_deepseek.deploy.export_job import ExportJob
from keras_deepseek.errors import InvalidInputError
from keras_deepseek.graph.optimization import optimize
from keras_deepseek.graph.passes import PASSES

_OF_THE_BACKEND = "attention"
"""The pass that chooses by the speed of the running backend. The artifact runs elsewhere."""


def optimize_job(job: ExportJob, say: Callable[[str], None]) -> ExportJob:
    """Returns an export job whose model computes less, compared with the model of the given job."""
    named = job.model
    say(f"{job.export_format.name}: optimizing the graph")
    passes = [name for name in PASSES if name != _OF_THE_BACKEND]
    alternatives = [samples[0] for samples in job.alternative_samples]
    for sample in [job.samples[0], *alternatives]:
        with contextlib.suppress(InvalidInputError):  # The model does not take these sizes.
            inputs = named.pack_inputs(sample)
            optimized = optimize(named.model, inputs, measure=False, passes=passes)
            break
    else:
        return job  # The export says what is wrong with the samples.
    report = optimized.report
    if report is None or not {*(report.passes or ())} - {"identities"}:
        say(f"{job.export_format.name}: there is nothing to optimize")
        return job
    original_count, optimized_count = report.multiply_adds
    say(f"{job.export_format.name}: {original_count:,} multiply-adds, now {optimized_count:,}")
    return replace(job, model=NamedModel(optimized, named.precision), reference=named)
