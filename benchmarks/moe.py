"""What `DeepSeekMoE` costs, beside a dense layer of equal active size and a loop over experts.

The dense layer is a `SwiGLU` of the width that one token uses: what a mixture can come near to at
best, for it reads a fraction of the kernels. The loop goes over the experts as the eager code of
`transformers` does: each looks up its tokens, computes them, and adds its results to the outputs.
JAX knows no such shapes under jit, so there each expert computes every token.

Claim: where the work is worth a loop, from 512 tokens on, and the backend knows the loads (torch),
ours takes at most 1.25 times the loop's time; in JAX it takes at most that too. With backward, the
blocks in TensorFlow's graphs must be of static shapes, since XLA may compile them, and the loop's
are not: the column "rows" says how many rows those blocks have for each one that was chosen.
Forward alone, as in a model that is served, TensorFlow and JAX go block by block.

Forward, and with backward; few large experts and many small ones; 1 to 4,096 tokens. Each backend
runs in its usual compiled form: TensorFlow in a graph, JAX under jit, torch eagerly as Keras runs
it. The rivals take turns; the numbers are medians of process time. Prints a table and writes the
numbers as JSON, for the backend that `KERAS_BACKEND` names or else for all that are installed, each
setting in a process of its own:

    python benchmarks/moe.py [--rounds 5] [--json RESULT.json] [--quick]
"""

import sys

from processes import find_backends, make_parser, measure
from result import Figure, count, report

NAMES = ("num_experts", "num_experts_per_token", "dim", "intermediate_dim")
LARGE, SMALL = (8, 2, 256, 512), (64, 6, 256, 128)
SETTINGS = [(sizes, tokens) for sizes in (LARGE, SMALL) for tokens in (1, 32, 512, 4096)]
QUICK = [((4, 2, 32, 16), 3), ((8, 2, 32, 16), 64)]
OURS = "DeepSeekMoE"
LEAST_TOKENS, LEAST = 512, 0.8


def main() -> int:
    arguments = make_parser(__doc__).parse_args()
    print(f"{'ms':11}{'experts':>8}{'of them':>8}{'tokens':>7}  {'':14}", end="")
    print("".join(f"{name:>12}" for name in (OURS, "dense", "loop", "by dense", "by loop", "rows")))
    rows, figures = [], []
    for backend in find_backends():
        for sizes, num_tokens in QUICK if arguments.quick else SETTINGS:
            setting = {**dict(zip(NAMES, sizes, strict=True)), "num_tokens": num_tokens}
            result = measure(backend, "moe", arguments.rounds, **setting)
            for direction, milliseconds in result["milliseconds"].items() if result else ():
                ours = milliseconds[OURS]
                row = {"backend": backend, **setting, "direction": direction}
                row |= {"milliseconds": milliseconds, **result["facts"]}
                row["by_dense"] = ours / milliseconds["dense"]
                row["by_loop"] = ours / milliseconds["loop"]
                is_claimed = backend != "tensorflow" and num_tokens >= LEAST_TOKENS
                title = f"{sizes[0]} experts, {count(num_tokens, 'token')}, {direction}"
                least = LEAST if is_claimed and not arguments.quick else None
                loop = milliseconds["loop"]
                figures.append(Figure(title, ours, "ms", backend, "loop", loop, least))
                rows.append(row)
                print(
                    f"{backend:11}{sizes[0]:>8}{sizes[1]:>8}{num_tokens:>7}  {direction:14}"
                    + "".join(f"{value:>12.2f}" for value in milliseconds.values())
                    + f"{row['by_dense']:>12.2f}{row['by_loop']:>12.2f}{row['rows']:>12.2f}",
                    flush=True,
                )
    return report(arguments.json, figures, rows)


if __name__ == "__main__":
    sys.exit(main())
