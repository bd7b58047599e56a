"""Prints a table of what `keras_io_test.py` has recorded on each backend, and every refusal.

`KERAS_BACKEND=torch python -m pytest example_tests/keras_io_test.py --junitxml torch.xml`, the same
with the others, then `python example_tests/write_table.py torch.xml jax.xml tensorflow.xml`.
"""

import re
import sys
from collections.abc import Iterator
from xml.etree import ElementTree as ET

NAME = re.compile(r"test_(?P<test>\w+)\[(?P<example>[\w/]+)(?:-(?P<format>\w+))?\]")
STEPS = ("float32", "half precision", "resume", "onnx", "savedmodel", "served")
TITLES = ("as Keras trains", "half precision", "resumed", "ONNX", "SavedModel", "served")

INTRODUCTION = """# Examples of keras.io

21 official examples run on each backend. They are rewritten in the form of the original code, on
generated data of the same shapes. `tox -e examples` runs them.

- **as Keras trains**: `Trainer.fit` ends with the weights and logs of `model.fit`, to 1e-4.
- **half precision**: with `fp16_enabled=True`, two micro-batches and clipping by the global norm,
  the losses are within 5 % of those in float32. If the model has its own `train_step`, the trainer
  refuses micro-batches and clipping by name, and the model trains without them.
- **resumed**: a training is killed in the middle of an epoch and resumed. It ends with the same
  bits.
- **ONNX**, **SavedModel**: the model is exported, verified, and compared at further batch sizes and
  lengths.
- **served**: rows that are sent at the same time get the answers of `model.predict`. The
  recommender mixes the rows of a batch: the engine warns, and serves it correctly with one row at a
  time.

A number after "refused" refers to the error messages below the table.

To write this page again, run the tests with `--junitxml` on each backend, then
`python example_tests/write_table.py torch.xml jax.xml tensorflow.xml > docs/keras_examples.md`.
"""


def main(paths: list[str]) -> None:
    """Prints the table of the files that pytest wrote."""
    outcomes = {key: outcome for path in paths for key, outcome in read(path)}
    examples = sorted({example for example, _, _ in outcomes})
    backends = list(dict.fromkeys(backend for _, backend, _ in outcomes))
    print(INTRODUCTION)
    print(f"| example | backend | {' | '.join(TITLES)} |")
    print("|---" * (2 + len(STEPS)) + "|")
    notes: dict[str, int] = {}
    for example in examples:
        for backend in backends:
            cells = [
                cell(outcomes.get((example, backend, step), "not run"), notes) for step in STEPS
            ]
            title = example if backend == backends[0] else ""
            print(f"| {title} | {backend} | {' | '.join(cells)} |")
    print()
    for note, number in notes.items():
        print(f"{number}. {note}")


def cell(outcome: str, notes: dict[str, int]) -> str:
    """Returns what a cell shows: what is more than a word stands below, by its number."""
    kind, _, message = outcome.partition(": ")
    if not message:
        return kind
    message = " ".join(message.split())
    return f"{kind} [{notes.setdefault(message, len(notes) + 1)}]"


def read(path: str) -> Iterator[tuple[tuple[str, str, str], str]]:
    """Yields the outcome of each test of a file, by example, backend and step."""
    cases = list(ET.parse(path).getroot().iter("testcase"))
    properties = [
        {element.get("name", ""): element.get("value", "") for element in case.iter("property")}
        for case in cases
    ]
    backend = next(
        (
            case_properties["backend"]
            for case_properties in properties
            if "backend" in case_properties
        ),
        path,
    )
    for case, recorded in zip(cases, properties, strict=True):
        match = NAME.fullmatch(case.get("name", ""))
        if match is None:
            continue
        step = match["format"] or match["test"].replace("_", " ")
        outcome = recorded.get("outcome", "not run")
        for child in case:
            if child.tag in ("failure", "error"):
                outcome = f"failed: {(child.get('message') or 'no message')[:300]}"
            elif child.tag == "skipped":
                outcome = f"not applicable: {child.get('message', '')}"
        yield (match["example"], backend, step), outcome


if __name__ == "__main__":
    main(sys.argv[1:])
