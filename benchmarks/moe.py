"""What a mixture of experts costs, beside a dense layer of equal active size and a loop.

placeholder
"""

import sys

from processes import find_backends, make_parser, measure, write_json

NAMES = ("num_experts", "num_experts_per_token", "num_tokens", "dim", "intermediate_dim")
SETTINGS = (
    (8, 2, 1, 256, 512),
    (8, 2, 32, 256, 512),
    (8, 2, 512, 256, 512),
    (8, 2, 4096, 256, 512),
    (64, 6, 1, 256, 128),
    (64, 6, 32, 256, 128),
    (64, 6, 512, 256, 128),
    (64, 6, 4096, 256, 128),
)
QUICK = ((4, 2, 3, 32, 16), (8, 2, 64, 32, 16))


def main() -> int:
    arguments = make_parser(__doc__).parse_args()
    rows = []
    print(f"{'experts':>7}{'of them':>8}{'tokens':>7}")
    for backend in find_backends():
        for sizes in QUICK if arguments.quick else SETTINGS:
            setting = dict(zip(NAMES, sizes, strict=True))
            result = measure(backend, "moe", arguments.rounds, **setting)
            if result is None: continue
            for direction, ms in result["milliseconds"].items():
                ours = ms["DeepSeekMoE"]
                print(f"{backend:10} {sizes} {direction:14}", *[f"{k} {v:.3f}" for k, v in ms.items()], f"x dense {ours/ms['dense']:.2f} x loop {ours/ms['loop']:.2f}", flush=True)
            rows.append({"backend": backend, **setting, **result})
    write_json(arguments.json, {"rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
