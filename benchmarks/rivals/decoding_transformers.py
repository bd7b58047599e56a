"""`transformers` with a model of random weights, which it writes; then it answers by the line.

python benchmarks/rivals/decoding_transformers.py FOLDER CONFIG
"""

import json
import sys
import time

import numpy as np
import torch
import transformers


def draw_prompts(batch_size: int, context: int, vocabulary_size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(1, vocabulary_size, (batch_size, context))


def make_model(folder: str, config: dict) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**config))
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.uniform_(0, 0.1)
    model.float().eval().save_pretrained(folder)
    return model


@torch.inference_mode()
def generate(model, batch_size: int, context: int, new_tokens: int, seed: int) -> dict:
    """Returns process seconds of the prompt and of a further token, and the tokens."""
    prompts = draw_prompts(batch_size, context, model.config.vocab_size, seed)
    start = time.process_time()
    outputs = model(torch.from_numpy(prompts), use_cache=True, logits_to_keep=1)
    token = outputs.logits[:, -1].argmax(-1, keepdim=True)
    tokens = [token.ravel().tolist()]
    first = time.process_time()
    for _ in range(new_tokens):
        outputs = model(token, past_key_values=outputs.past_key_values, use_cache=True)
        token = outputs.logits[:, -1].argmax(-1, keepdim=True)
        tokens.append(token.ravel().tolist())
    decode = (time.process_time() - first) / new_tokens
    return {"prefill": first - start, "decode": decode, "tokens": tokens}


def main() -> None:
    torch.set_num_threads(1)
    model = make_model(sys.argv[1], json.loads(sys.argv[2]))
    for line in sys.stdin:
        question = json.loads(line)
        if question.pop("what", None):
            count = sum(parameter.numel() for parameter in model.parameters())
            answer = {"parameters": count, "transformers": transformers.__version__}
        else:
            answer = generate(model, **question)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
