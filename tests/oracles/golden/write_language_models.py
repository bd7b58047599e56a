"""Writes `language_models.npz`: a tiny model of each family, as transformers computes it.

Run by hand, in the tox environment `parity`:

    PYTHONPATH=. python tests/oracles/golden/write_language_models.py
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from parity_tests.language_model_cases import GROUPS, LONG, V2, V3, V32, Family
from parity_tests.written_checkpoints import (
    call_theirs,
    draw_batch,
    make_theirs,
    their_gradients,
    write_theirs,
)
from tests.oracles.golden_language_models import PATH, direction

SMALL = {**GROUPS, **LONG, "num_hidden_layers": 2, "vocab_size": 23, "n_routed_experts": 8}
CASES = {
    V2.name: (V2, {**SMALL, "topk_method": "group_limited_greedy"}),
    V3.name: (V3, SMALL),
    V32.name: (V32, SMALL),
}


def run_case(family: Family, arguments: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    """Returns what the file holds of a model."""
    own = replace(family, cases={"golden": arguments})
    model = make_theirs(own, "golden")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.copy_(tensor.half())  # As they will be read.
    tensors = write_theirs(model, folder / "weights")
    batch = draw_batch(model.config.vocab_size, "left")
    logits, loss = call_theirs(model, batch)
    loss.backward()
    arrays = {
        "config": np.array((folder / "weights/config.json").read_text()),
        **{f"tensor/{name}": array.astype("float16") for name, array in tensors.items()},
        **batch,
        "logits": logits.detach().numpy(),
        "loss": np.array(loss.item()),
    }
    gradients = their_gradients(model, folder / "gradients")
    slopes = [np.vdot(direction(array), array.astype("float64")) for array in gradients.values()]
    return {
        **arrays,
        "slope_names": np.array(json.dumps(list(gradients))),
        "slopes": np.array(slopes),
    }


def main() -> None:
    """Writes the file beside this script."""
    arrays = {}
    for name, (family, arguments) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            case = run_case(family, arguments, Path(folder))
        arrays |= {f"{name}|{key}": array for key, array in case.items()}
    np.savez_compressed(PATH, **arrays)
    print(f"{PATH.name}: {len(CASES)} models, {PATH.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
