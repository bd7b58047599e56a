"""Claims of `MultiHeadLatentAttention`, on the CPU, in one thread.

- With 4,096 tokens in the latent cache, the absorbed way decodes a token at least 10 times faster
  than the naive one, which expands the cache to keys and values of each head.
- The way that the layer chooses is no slower than the naive one (up to 10 % for the noise) where a
  prompt is read, at once or in pieces into a cache.
- The cache takes the bytes of `key_value_lora_rank + rope_head_dim` numbers a token, and one byte
  for the mask.

The layer is one of DeepSeek's proportions, with its projections: 16 heads of 128 and 64, a latent
of 512, inputs of 1,024; the batch is one sequence. Each backend runs in its usual compiled form:
TensorFlow in a graph, JAX under jit, torch eagerly as Keras runs it, and with `--torch-compile`
under `torch.compile` too, which takes minutes and a C++ compiler and makes no claim. The ways take
turns; the numbers are medians of process time. Prints a table and writes the numbers as JSON, for
the backend that `KERAS_BACKEND` names or else for all that are installed, each in processes of its
own:

    python benchmarks/latent_attention.py [--rounds 5] [--json RESULT.json] [--quick]
"""

import sys
from typing import Any

from processes import find_backends, make_parser, measure
from result import Figure, count, report

COMPILED = "torch.compile"
SIZES = {
    "num_heads": 16,
    "nope_head_dim": 128,
    "rope_head_dim": 64,
    "value_head_dim": 128,
    "key_value_lora_rank": 512,
    "query_lora_rank": 768,
}
DIM = 1024
QUICK_SIZES = {name: size // 8 for name, size in SIZES.items()}
# New tokens, and tokens in the cache with them; without one, a prompt alone.
SETTINGS = ((1, 1024), (1, 2048), (1, 4096), (512, None), (2048, None), (64, 4096), (512, 4096))
QUICK = ((1, 64), (32, None), (8, 64))
AT, LEAST_TIMES, LEAST_OF_NAIVE = 4096, 10, 0.9
FLOAT_BYTES = 4


def measure_setting(
    name: str, num_queries: int, cache_length: int | None, arguments: Any
) -> dict[str, Any] | None:
    """Returns what was measured, and the ratios that the claims are about."""
    result = measure(
        "torch" if name == COMPILED else name,
        "latent_attention",
        arguments.rounds,
        num_queries=num_queries,
        cache_length=cache_length,
        sizes=QUICK_SIZES if arguments.quick else SIZES,
        dim=DIM // 8 if arguments.quick else DIM,
        directions=["forward"],
        use_torch_compile=name == COMPILED,
    )
    if result is None:
        return None
    milliseconds = result["milliseconds"]["forward"]
    ratios = {
        "naive_by_absorbed": milliseconds["naive"] / milliseconds["absorbed"],
        "chosen_by_naive": milliseconds["chosen"] / milliseconds["naive"],
    }
    setting = {"num_queries": num_queries, "cache_length": cache_length}
    return {"backend": name, **setting, **result, **ratios}


def judge(row: dict[str, Any], bytes_per_token: int) -> list[Figure]:
    """Returns the figures that are claimed of a row."""
    milliseconds, backend = row["milliseconds"]["forward"], row["backend"]
    queries, cache = row["num_queries"], row["cache_length"]
    name = count(queries, "new token")
    name += f", {cache:,} in the cache" if cache else ""
    if queries > 1:
        our_milliseconds, least = milliseconds["chosen"], LEAST_OF_NAIVE
    else:
        our_milliseconds, least = milliseconds["absorbed"], LEAST_TIMES if cache >= AT else None
    figures = [Figure(name, our_milliseconds, "ms", backend, "naive", milliseconds["naive"], least)]
    if queries == 1 and cache == AT:  # The same at each length.
        cached_bytes = row["facts"]["cache_bytes_per_token"]
        figures.append(
            Figure("a cached token", cached_bytes, "bytes", backend, target=bytes_per_token)
        )
    return figures


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--torch-compile", action="store_true", help="torch compiled, too")
    arguments = parser.parse_args()
    sizes = QUICK_SIZES if arguments.quick else SIZES
    numbers = sizes["key_value_lora_rank"] + sizes["rope_head_dim"]
    bytes_per_token = numbers * FLOAT_BYTES + 1
    heads = 2 * sizes["num_heads"] * sizes["value_head_dim"] * FLOAT_BYTES
    print(
        f"Cache, bytes a token: {numbers} numbers of {FLOAT_BYTES} and 1 of the mask are "
        f"{bytes_per_token}; keys and values of all heads would be {heads}."
    )
    print(f"{'ms':14}{'tokens':>7}{'cache':>6}{'absorbed':>11}{'naive':>11}{'chosen':>11}", end="")
    print(f"{'naive/absorbed':>17}{'chosen/naive':>14}")
    names = find_backends()
    if "torch" in names and arguments.torch_compile:
        names.append(COMPILED)
    rows, figures = [], []
    for name in names:
        for num_queries, cache_length in QUICK if arguments.quick else SETTINGS:
            row = measure_setting(name, num_queries, cache_length, arguments)
            if row is None:
                continue
            if name != COMPILED and not arguments.quick:  # At small sizes nothing is claimed.
                figures += judge(row, bytes_per_token)
            rows.append(row)
            times = "".join(f"{value:>11.2f}" for value in row["milliseconds"]["forward"].values())
            print(
                f"{name:14}{num_queries:>7}{cache_length or '-':>6}{times}"
                f"{row['naive_by_absorbed']:>17.1f}{row['chosen_by_naive']:>14.2f}",
                flush=True,
            )
    return report(arguments.json, figures, {"sizes": sizes, "rows": rows})


if __name__ == "__main__":
    sys.exit(main())
