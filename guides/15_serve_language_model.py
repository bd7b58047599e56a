"""
Title: Serve a language model
Author: The keras_deepseek authors
Date created: 2026/12/01
Last modified: 2026/12/01
Description: A small DeepSeek-V3 learns to answer, and many users ask it by OpenAI's client at once.
Time: 1 minute on two cores
Install: "keras_deepseek[pictures,serving,text]" openai
"""

"""
You teach a small model what Python's functions do, save it in Hugging Face's format, and serve it.
Any client of OpenAI's API can ask it then. `keras-deepseek serve deepseek --name deepseek` is the
same server from the command line, also for a large checkpoint, as `hf://org/name`.
"""

import builtins
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import matplotlib.pyplot as plt
from openai import OpenAI
from tokenizers import Tokenizer as Encoder
from tokenizers import decoders, models, pre_tokenizers, trainers

from keras_deepseek.inference import ServingEngine
from keras_deepseek.models import DeepSeekV3CausalLM, DeepSeekV3Config, Tokenizer
from keras_deepseek.training import Trainer, WarmupDecay

keras.utils.set_random_seed(0)

"""
## Questions and answers

The answer to "What does abs do?" is the first paragraph of the function's own documentation.
"""

answers = {}
for name, function in vars(builtins).items():
    paragraph = (function.__doc__ or "").split("\n\n")[0]
    is_function = name.isalpha() and callable(function) and not isinstance(function, type)
    if is_function and 0 < len(paragraph) < 100:
        answers[f"What does {name} do?"] = " ".join(paragraph.split())
print(len(answers), "questions, as:", next(iter(answers)))

"""
## A tokenizer with a chat template

A tokenizer is the file `tokenizer.json` of the library `tokenizers`. The chat template says how a
conversation becomes one text. Checkpoints bring both; here you make them.
"""

encoder = Encoder(models.BPE())
encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
encoder.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(
    vocab_size=512,
    special_tokens=["<|begin|>", "<|user|>", "<|assistant|>", "<|end|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
)
encoder.train_from_iterator([*answers, *answers.values()], trainer)
settings = {
    "bos_token": "<|begin|>",
    "eos_token": "<|end|>",
    "chat_template": "<|begin|>{% for message in messages %}<|{{ message.role }}|>"
    "{{ message.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
}
tokenizer = Tokenizer(
    {
        "tokenizer.json": encoder.to_str().encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
    }
)


def format_chat(question):
    return tokenizer.apply_chat_template([{"role": "user", "content": question}])


"""
## Training

All conversations fit into one batch. The target at a position is the next token.
"""

texts = [f"{format_chat(question)}{answer}<|end|>" for question, answer in answers.items()]
batch = tokenizer(texts, add_special_tokens=False, sequence_length=48)
inputs = {name: array[:, :-1] for name, array in batch.items()}
model = DeepSeekV3CausalLM(
    DeepSeekV3Config(
        vocabulary_size=tokenizer.vocabulary_size,
        hidden_dim=96,
        intermediate_dim=256,
        num_layers=2,
        num_heads=4,
        nope_head_dim=16,
        rope_head_dim=8,
        value_head_dim=16,
        key_value_lora_rank=32,
        num_experts=4,
        num_experts_per_token=2,
        moe_intermediate_dim=64,
        num_dense_layers=1,
        tie_word_embeddings=True,
        initializer_range=0.08,
    )
)
trainer = Trainer(
    model,
    optimizer=keras.optimizers.AdamW(WarmupDecay(1e-2, total_steps=100, warmup_steps=20)),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    gradient_clip=("global_norm", 1.0),
    seed=0,
)
history = trainer.fit(
    inputs, batch["token_ids"][:, 1:], batch_size=len(texts), epochs=100, verbose=0
)
print(f"loss {history.history['loss'][-1]:.2f}")
model.tokenizer = tokenizer
folder = f"{tempfile.mkdtemp(prefix='serving_text_')}/deepseek"
model.save_to_preset(folder)

"""
## The server

The engine compiles every step before it is ready. Each request takes a row of one cache: rows
begin, go on and end by themselves, so that nobody waits for another's answer to end.
"""

engine = ServingEngine(folder, name="deepseek", max_length=128, max_batch_size=8)
server = engine.serve(http_port=0)
client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def chat(question, **options):
    messages = [{"role": "user", "content": question}]
    return client.chat.completions.create(
        model="deepseek", messages=messages, temperature=0, **options
    )


def ask(question):
    answer = chat(question)
    return answer.choices[0].message.content, answer.usage.completion_tokens


print(*ask("What does abs do?"), "tokens")

"""
## The answer as it comes
"""

for chunk in chat("What does sorted do?", stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()

"""
## Many users at once

All questions are asked three times: by one user after another, by four at once, and by eight.
"""

speeds, texts_of_users = {}, {}
for users in (1, 4, 8):
    started = time.perf_counter()
    with ThreadPoolExecutor(users) as pool:
        results = list(pool.map(ask, answers))
    seconds = time.perf_counter() - started
    texts_of_users[users], lengths = zip(*results, strict=True)
    speeds[users] = sum(lengths) / seconds
print({users: f"{speed:.0f} tokens/s" for users, speed in speeds.items()})

"""
## In the same process

`engine.text` gives the answer piece by piece, or whole, without a server.
"""

for piece in engine.text([{"role": "user", "content": "What does len do?"}], temperature=0):
    print(piece.text, end="", flush=True)
print()
engine.close()

figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
axis.bar([str(users) for users in speeds], speeds.values())
axis.set(xlabel="users at once", ylabel="tokens a second of all answers")
figure.savefig("serve_language_model.png")
num_right = sum(
    text == answer for text, answer in zip(texts_of_users[1], answers.values(), strict=True)
)
print(f"{keras.backend.backend()}: {num_right} of {len(answers)} answers are word for word right")
assert num_right > 0.8 * len(answers)
assert texts_of_users[4] == texts_of_users[1] == texts_of_users[8]
