"""What Keras costs on PyTorch: a training step and a forward pass beside plain PyTorch.

The same models with the same weights, whose losses are compared first: a small CNN, a transformer
of 4 blocks of 64, the shapes of ResNet-18 (images of 16 x 16) and of BERT-small (32 tokens), an
LSTM and a GRU of 64 units, with 32 rows. A CNN with three poolings, a small ResNet, a small
MobileNet and a U-Net with images of 32 and 64 pixels a side, and a bidirectional LSTM, with 16.
Nothing is dropped.

- A training step by plain PyTorch, with images in both of its memory layouts, `torch.compile`,
  Lightning where it is installed, Keras's `fit` and `Trainer.fit`, with AdamW; PyTorch's is fused.
  `Trainer.fit` takes at most 1.1 times as long as plain PyTorch, 1.2 times for the LSTM and the
  GRU.
- A forward pass by plain PyTorch, `torch.compile`, Keras's `predict`, `Trainer.predict`, and the
  executor by which a live model is served, with the same bounds, but 1.2 times for the models of
  16 rows.

One thread. The rivals take turns, and the numbers are medians of process time, of runs of many
steps; the ratios are medians of those of a round. Prints a table and writes the numbers as JSON:

    python benchmarks/torch_step.py [--rounds 5] [--json RESULT.json] [--quick]
        [--no-compile] [--models LSTM GRU]
"""

import statistics
import sys

from processes import find_backends, make_parser, measure
from result import Figure, report

NUM_STEPS = {
    "CNN": 150,
    "transformer": 30,
    "ResNet-18": 3,
    "LSTM": 100,
    "GRU": 60,
    "bidirectional LSTM": 60,
    "BERT-small": 2,
    **{f"{name} 32": 40 for name in ("pooling", "ResNet", "MobileNet", "U-Net")},
    **{f"{name} 64": 12 for name in ("pooling", "ResNet", "MobileNet", "U-Net")},
}
"""So many steps that the start of a `fit` is little beside them."""

PLAIN, CHANNELS_LAST = "plain PyTorch", "plain PyTorch, channels_last"
OURS = {"step": "Trainer.fit", "forward": "Trainer.predict"}
SERVED = "served"
RECURRENT = ("LSTM", "GRU")
WITH_LAYOUTS = ("pooling", "ResNet ", "MobileNet", "U-Net", "bidirectional")
"""Models whose step takes at most 1.1 times, and forward pass 1.2 times the better layout's."""


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--models", nargs="+", choices=NUM_STEPS, default=[*NUM_STEPS])
    arguments = parser.parse_args()
    if "torch" not in find_backends():
        print("PyTorch is not installed, or KERAS_BACKEND names another backend.")
        return report(arguments.json)
    compiles = not (arguments.no_compile or arguments.quick)
    print(f"{'ms':13}{'':9}{'':17}{'each':>9}{'by plain':>10}")
    results, figures = {}, []
    for model in arguments.models:
        for direction in ("step", "forward"):
            num_steps = 1 if arguments.quick else NUM_STEPS[model]
            result = measure(
                "torch",
                "torch_step",
                arguments.rounds,
                model=model,
                num_steps=num_steps,
                trains=direction == "step",
                compiles=compiles,
                directions=["forward"],
            )
            if result is None:
                continue
            samples = {
                name: [total / num_steps for total in totals]
                for name, totals in result["samples"]["forward"].items()
            }
            results[f"{model}, {direction}"] = samples
            for name, reason in result["facts"]["skipped"].items():
                print(f"{model:13}{direction:9}{name:17}left out: {reason}")
            for name, times in samples.items():
                time, ratio = statistics.median(times), compare(times, samples[PLAIN])
                print(f"{model:13}{direction:9}{name:17}{time:>9.3f}{ratio:>10.2f}", flush=True)
            if not arguments.quick:
                figures += judge(model, direction, samples)
    return report(arguments.json, figures, results)


def compare(times: list[float], other_times: list[float]) -> float:
    """Returns by how many times a step takes longer than another, which took turns with it."""
    return statistics.median(
        time / other_time for time, other_time in zip(times, other_times, strict=True)
    )


def judge(model: str, direction: str, samples: dict[str, list[float]]) -> list[Figure]:
    """Returns the figures of a model. A peer's is by the median ratio of the rounds."""
    has_layouts = model.startswith(WITH_LAYOUTS)
    is_slower = direction == "forward" if has_layouts else model in RECURRENT
    limit = 1.2 if is_slower else 1.1
    judged = (PLAIN, CHANNELS_LAST) if has_layouts else (PLAIN,)
    names = [name for name in (OURS[direction], SERVED) if name in samples]
    figures = []
    for name in names:
        ours = statistics.median(samples[name])
        for peer in samples.keys() - {*names}:
            theirs = ours / compare(samples[name], samples[peer])
            title = f"{model}, {direction}" + (", served" if name == SERVED else "")
            target = 1 / limit if peer in judged else None
            figures.append(Figure(title, ours, "ms", "torch", peer, theirs, target))
    return figures


if __name__ == "__main__":
    sys.exit(main())
