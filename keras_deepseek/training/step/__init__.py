"""The compiled training step: loss, gradients and update.

`StepPlan` (in `training/fit`) makes a `TrainingStep` from `StepOptions`. The step calls
`BatchGradients.compute`, which runs the forward pass by `Trainer.train_step` and the backward pass,
and then `GradientUpdate`: unscale, check, clip, apply.
"""
