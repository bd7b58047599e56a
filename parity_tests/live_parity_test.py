"""Every maker of `tests/oracles/golden`, run with other seeds than the files were made with."""

import importlib
from pathlib import Path

import pytest
import torch

import tests.oracles.golden
from tests.oracles.parity import check_case, make_layer

SEEDS = (1, 2)
FOLDER = Path(next(iter(tests.oracles.golden.__path__)))
MAKERS = {
    path.stem.removeprefix("make_"): importlib.import_module(f"tests.oracles.golden.{path.stem}")
    for path in sorted(FOLDER.glob("make_*.py"))
}
CASES = [(kind, name) for kind, maker in MAKERS.items() for name in maker.CASES]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_layer_computes_what_transformers_computes(kind, name, seed, record_property):
    torch.manual_seed(seed)
    case = MAKERS[kind].run_case(name)
    outputs, gradients = check_case(make_layer(case), case)
    record_property("errors", f"{outputs:.1e}  {gradients:.1e}  seed {seed}  {kind}, {name}")
