"""PyTorch's own data parallelism through Accelerate, as people run it, and with its hooks."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import torch
import torch.distributed as dist
from masked_text import IGNORED
from scaling import DDP, DDP_BF16, DDP_BF16_4MB, LEARNING_RATE, POWER_SGD, WEIGHT_DECAY, Rows

_DEFAULT_MB, _ONE_BUCKET_MB = 25, 1_000


def make_ways(
    make_model: Callable[[], keras.Model], rows: Rows, rank: int, setting: dict[str, Any]
) -> dict[str, Callable[[], Iterator[Any]]]:
    """Returns by name what begins a training and returns the losses of its steps."""

    def way(add_hook: Callable[[Any], None] | None, bucket_mb: int) -> Callable[[], Iterator[Any]]:
        return lambda: _train(
            make_model(),
            rows.of(rank, setting["num_workers"]),
            setting["parts"],
            add_hook,
            bucket_mb,
        )

    return {
        DDP: way(None, _DEFAULT_MB),
        DDP_BF16: way(_use_bfloat16, _DEFAULT_MB),
        DDP_BF16_4MB: way(_use_bfloat16, 4),
        # With several buckets it crashes on gloo.
        POWER_SGD: way(_use_power_sgd, _ONE_BUCKET_MB),
    }


def _train(
    model: keras.Model, batches: Iterator[Any], parts: int, add_hook: Any, bucket_mb: int
) -> Iterator[Any]:
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    accelerator = Accelerator(
        cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(bucket_cap_mb=bucket_mb)]
    )
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    module, optimizer = accelerator.prepare(model, optimizer)
    if add_hook is not None:
        add_hook(module)
    for x, y in batches:
        optimizer.zero_grad()
        total = torch.zeros(())
        for part in range(parts):
            tensors = {name: torch.from_numpy(array[part::parts]) for name, array in x.items()}
            targets = torch.from_numpy(y[part::parts]).long()
            is_last = part == parts - 1
            with contextlib.nullcontext() if is_last else accelerator.no_sync(module):
                logits = module(tensors, training=True)
                loss = torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED
                )
                accelerator.backward(loss / parts)
            total += loss.detach() / parts
        optimizer.step()
        yield total


def _use_bfloat16(module: Any) -> None:
    """Adds a hook that sends bfloat16; PyTorch's own refuses gloo."""
    world_size = dist.get_world_size()

    def reduce(_: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        buffer = bucket.buffer()
        half = buffer.to(torch.bfloat16).div_(world_size)
        future = dist.all_reduce(half, async_op=True).get_future()
        return future.then(lambda done: buffer.copy_(done.value()[0]))

    module.register_comm_hook(None, reduce)


def _use_power_sgd(module: Any) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook

    state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=4, start_powerSGD_iter=2)
    module.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
