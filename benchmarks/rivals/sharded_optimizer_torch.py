"""PyTorch's own sharded state: `ZeroRedundancyOptimizer`, and `fully_shard` (FSDP2)."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from bert import EPSILON
from masked_text import IGNORED, VOCABULARY_SIZE
from scaling import LEARNING_RATE, LENGTH, WEIGHT_DECAY, Rows, make_model
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

_NUM_HEADS = 4
_OPTIONS = {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "eps": EPSILON, "fused": True}


class Encoder(nn.Module):
    """The encoder of `bert.py`, of PyTorch's own layers: `fully_shard` knows no Keras variables."""

    def __init__(self, setting: dict[str, Any]) -> None:
        super().__init__()
        dim = setting["hidden_dim"]
        self.tokens = nn.Embedding(VOCABULARY_SIZE, dim)
        self.positions = nn.Embedding(2 * LENGTH, dim)
        self.segments = nn.Embedding(2, dim)
        for table in (self.tokens, self.positions, self.segments):
            nn.init.normal_(table.weight, std=0.02)
        self.norm = nn.LayerNorm(dim, 1e-12)
        layer = {"dropout": 0.0, "activation": "gelu", "batch_first": True}
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, _NUM_HEADS, 4 * dim, **layer)
            for _ in range(setting["num_layers"])
        )
        self.dense = nn.Linear(dim, dim)
        self.head_norm = nn.LayerNorm(dim, 1e-12)
        self.bias = nn.Parameter(torch.zeros(VOCABULARY_SIZE))

    def forward(self, x: dict[str, Any]) -> Any:
        """Returns the logits of all tokens."""
        segments = x["segment_ids"]
        hidden = self.tokens(x["token_ids"]) + self.positions(x["positions"])
        hidden = self.norm(hidden + self.segments(torch.zeros_like(segments)))
        is_hidden = segments[:, :, None] != segments[:, None, :]
        mask = is_hidden.repeat_interleave(_NUM_HEADS, 0)
        for layer in self.layers:
            hidden = layer(hidden, src_mask=mask)
        hidden = self.head_norm(nn.functional.gelu(self.dense(hidden)))
        return hidden @ self.tokens.weight.T + self.bias


def make_ways(setting: dict[str, Any], rows: Rows, rank: int) -> dict[str, Any]:
    """Returns by name what begins a training, as those of `Trainer`."""

    def run(compute: Callable[..., Any], optimizer: Any) -> Iterator[Any]:
        for x, y in rows.of(rank, setting["num_workers"]):
            logits = compute({name: torch.from_numpy(array) for name, array in x.items()})
            loss = nn.functional.cross_entropy(
                logits.flatten(0, 1), torch.from_numpy(y).long().flatten(), ignore_index=IGNORED
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.detach()

    def zero() -> Any:
        # Gradients as views of the buckets: as little memory as it can do with.
        module = DistributedDataParallel(make_model(setting), gradient_as_bucket_view=True)
        optimizer = ZeroRedundancyOptimizer(module.parameters(), torch.optim.AdamW, **_OPTIONS)
        losses = run(lambda tensors: module(tensors, training=True), optimizer)
        return losses, lambda: _count_bytes(optimizer.optim)

    def fsdp() -> Any:
        torch.manual_seed(0)
        model = Encoder(setting)
        for layer in model.layers:
            fully_shard(layer)
        fully_shard(model)
        optimizer = torch.optim.AdamW(model.parameters(), **_OPTIONS)
        return run(model, optimizer), lambda: _count_bytes(optimizer)

    return {"DDP, ZeRO": zero, "FSDP2": fsdp}


def _count_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Returns the bytes of an optimizer's state in this process."""
    return sum(
        getattr(tensor, "_local_tensor", tensor).nbytes
        for state in optimizer.state.values()
        for tensor in state.values()
    )
