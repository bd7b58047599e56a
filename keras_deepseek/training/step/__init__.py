"""The compiled training step: loss, gradients and update.

`StepPlan` (in `training/fit`) makes a `TrainingStep` from `StepOptions`. The model has it, as a
`CompiledStep`, while it trains. The step calls `BatchPart`, which runs the forward pass by
`BatchLoss` or `Trainer.train_step`; then the backward pass; and then `GradientUpdate`: unscale,
check, clip, apply. `sum_micro_batches`, `sum_devices` and `sum_processes` sum the gradients of
several such parts.
"""
