"""vLLM's build for CPUs, driven in one process; see `text_serving.py`.

python benchmarks/rivals/text_serving_vllm.py FOLDER ROWS MAX_LENGTH

The weights are already in the folder.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
    "HF_HUB_OFFLINE": "1",
}
os.environ.update(SETTINGS)  # vLLM reads them when it is imported.

from text_requests import Answers, TextRequest, answer_questions  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402


def serve(engine: Any, requests: list[TextRequest]) -> Answers:
    """Answers the requests, a step after another."""
    answers = Answers(requests)
    waiting = list(enumerate(requests))
    while waiting or engine.has_unfinished_requests():
        while waiting and waiting[0][1].arrival <= answers.clock():
            number, request = waiting.pop(0)
            sampling = SamplingParams(
                temperature=0, max_tokens=request.num_tokens, ignore_eos=True, detokenize=False
            )
            engine.add_request(str(number), {"prompt_token_ids": request.prompt}, sampling)
        if not engine.has_unfinished_requests():
            answers.clock.jump(waiting[0][1].arrival)
            continue
        outputs = engine.step()
        now = answers.clock()
        for output in outputs:
            number = int(output.request_id)
            token_ids = list(output.outputs[0].token_ids)
            answers.add(number, token_ids[len(answers.tokens[number]) :], now)
    return answers


def main() -> None:
    folder, num_rows, max_length = sys.argv[1:]
    standard_output = os.dup(1)
    os.dup2(2, 1)  # vLLM's log lines are no answers, now or later.
    engine = LLM(
        model=folder,
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=int(max_length),
        max_num_seqs=int(num_rows),
        enable_prefix_caching=False,
        distributed_executor_backend="uni",
        seed=0,
    ).llm_engine
    sys.stdout = os.fdopen(standard_output, "w")
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    answer_questions(lambda requests: serve(engine, requests), config["vocab_size"])


if __name__ == "__main__":
    main()
