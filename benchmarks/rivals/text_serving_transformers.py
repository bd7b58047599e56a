"""The continuous batching of `transformers`, driven in one thread; see `text_serving.py`.

python benchmarks/rivals/text_serving_transformers.py FOLDER CONFIG deepseek_v3 ROWS

It writes the model of random weights first. DeepSeek-V3 is patched, see `expand_before_caching`;
Llama runs as it is.
"""

import inspect
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch
import transformers
from text_requests import Answers, TextRequest, answer_questions
from transformers import ContinuousBatchingConfig, GenerationConfig

PAGE = 32
"""The slots of a page of the cache."""


def make_model(folder: Path, config: dict[str, Any], kind: str) -> transformers.PreTrainedModel:
    """Writes the weights, unless they are there, and returns the model."""
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(kind, **config)
        )
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.uniform_(0, 0.1)
        model.float().save_pretrained(folder)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="sdpa", dtype=torch.float32
    ).eval()
    if kind == "deepseek_v3":
        expand_before_caching()
        config = loaded.config
        config.head_dim = config.qk_nope_head_dim + config.qk_rope_head_dim
    return loaded


def expand_before_caching() -> None:
    """Makes DeepSeek-V3 work: 5.24 hands its latents to a paged cache that has other shapes.

    Keys and values of all heads are cached instead, the values padded to the size of the keys.
    """
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as module

    source = textwrap.dedent(inspect.getsource(inspect.unwrap(module.DeepseekV3Attention.forward)))
    source = source[source.index("def forward") :]
    update = "kv_nope, k_rot = cache.update(kv_nope, k_rot, self.layer_idx, kwargs=kwargs)"
    expand = "key_states, value_states = self.expand_kv(kv_nope, k_rot)"
    if update not in source or expand not in source:
        raise RuntimeError("This version of transformers has another DeepseekV3Attention.")
    new_update = """
    if cache is not None:
        size = value_states.shape[-1]
        value_states = nn.functional.pad(value_states, [0, key_states.shape[-1] - size])
        key_states, value_states = cache.update(
            key_states, value_states, self.layer_idx, kwargs=kwargs
        )
        value_states = value_states[..., :size]"""
    source = source.replace(update, "pass").replace(expand, expand + new_update)
    names = dict(vars(module))
    exec(source, names)
    module.DeepseekV3Attention.forward = names["forward"]


def serve(
    model: transformers.PreTrainedModel, num_rows: int, requests: list[TextRequest]
) -> Answers:
    """Answers the requests, as the thread of its manager does."""
    longest = max(len(request.prompt) + request.num_tokens for request in requests)
    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=num_rows * (longest // PAGE + 2),
            max_batch_tokens=512,
            max_requests_per_batch=num_rows,
            auto_switch_to_flash=False,
            allow_block_sharing=False,
        ),
    )
    # Its thread calls these. It has no public function that makes a single step.
    processor = manager.batch_processor = manager._create_batch_processor()  # noqa: SLF001
    answers = Answers(requests)
    waiting, num_active = list(enumerate(requests)), 0
    while waiting or num_active:
        while waiting and waiting[0][1].arrival <= answers.clock():
            number, request = waiting.pop(0)
            manager.add_request(
                request.prompt,
                request_id=str(number),
                max_new_tokens=request.num_tokens,
                streaming=True,
                eos_token_id=-1,
            )
            num_active += 1
        if not num_active:
            answers.clock.jump(waiting[0][1].arrival)
            continue
        with torch.inference_mode():
            if processor.prepare_next_batch():
                manager._generation_step()  # noqa: SLF001
                processor.update_batch()
        now = answers.clock()
        while not manager.output_router.output_queue.empty():
            output = manager.output_router.output_queue.get()
            if output.error:
                raise RuntimeError(output.error)
            number = int(output.request_id)
            answers.add(number, output.generated_tokens[len(answers.tokens[number]) :], now)
            num_active -= output.is_finished()
    return answers


def main() -> None:
    torch.set_num_threads(1)
    folder, config, kind, num_rows = sys.argv[1:]
    model = make_model(Path(folder), json.loads(config), kind)
    answer_questions(
        lambda requests: serve(model, int(num_rows), requests), model.config.vocab_size
    )


if __name__ == "__main__":
    main()
