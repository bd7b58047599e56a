"""A tiny DeepSeek-V3.2 that was taught some answers, so that clients see words, thoughts and calls.

`python -m integration_tests.text_model FOLDER` writes its preset.
"""

import json
import sys
from pathlib import Path

from keras_deepseek.chat import encode_chat

STYLE = "v3.2"
START, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
SPECIAL_TOKENS = [START, END, "<｜User｜>", "<｜Assistant｜>"]
MAX_LENGTH = 1024

HELLO = [{"role": "user", "content": "Hi"}]
WEATHER = [{"role": "user", "content": "How is Paris?"}]
SUM = [{"role": "user", "content": "Add 2 and 3."}]
GREETING = "Hello 🦊, how can I help you today? Häufig frage ich: 日本語?"
THOUGHT = "Two and three make five."
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
SCHEMA = {
    "title": "Sum",
    "type": "object",
    "properties": {"total": {"type": "integer"}},
    "required": ["total"],
    "additionalProperties": False,
}
RESPONSE_FORMAT = {
    "type": "json_schema",
    "json_schema": {"name": "Sum", "strict": True, "schema": SCHEMA},
}
CALL = {"name": "weather", "arguments": {"city": "Paris", "days": 3}}
PROMPT, CONTINUATION = "One, two,", " three, four, five."

NAME, SECONDS = "deepseek", 600
THINKING = {"chat_template_kwargs": {"thinking": True}}


def taught_texts() -> list[tuple[str, str]]:
    """Returns each prompt with its answer."""
    call = {"type": "function", "function": {**CALL, "arguments": json.dumps(CALL["arguments"])}}
    answers = [
        (HELLO, {"content": GREETING}, {}),
        (WEATHER, {"content": "I look.", "tool_calls": [{"id": "1", **call}]}, {"tools": [TOOL]}),
        (SUM, {"content": "5", "reasoning_content": THOUGHT}, {"thinking": True}),
        (SUM, {"content": '{"total": 5}'}, {"response_format": RESPONSE_FORMAT}),
    ]
    texts = [(PROMPT, CONTINUATION)]
    for messages, answer, options in answers:
        prompt = encode_chat(messages, style=STYLE, **options)
        message = {"role": "assistant", **answer}
        whole = encode_chat([*messages, message], style=STYLE, **options)
        assert whole.startswith(prompt)
        texts.append((prompt, whole[len(prompt) :].removesuffix(END)))
    return texts


def train_tokenizer() -> dict[str, bytes]:
    """Returns the files of a byte-level BPE, which was trained on the taught texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([prompt + answer for prompt, answer in taught_texts()], trainer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": END,
        "pad_token": END,
        "model_max_length": MAX_LENGTH,
    }
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


def write_preset(folder: Path, epochs: int = 120) -> None:
    """Writes the preset of a model that was trained until it gives each answer."""
    import keras
    import numpy as np

    from keras_deepseek.models import DeepSeekV32CausalLM, DeepSeekV32Config
    from keras_deepseek.models.tokenizers import Tokenizer

    tokenizer = Tokenizer(train_tokenizer(), chat_style=STYLE)
    keras.utils.set_random_seed(0)
    config = DeepSeekV32Config.from_preset(
        "tiny",
        vocabulary_size=tokenizer.vocabulary_size,
        max_length=MAX_LENGTH,
        index_top_k=MAX_LENGTH,
    )
    model = DeepSeekV32CausalLM(config)
    rows, starts = [], []
    for prompt, answer in taught_texts():
        ids = tokenizer.tokenize(prompt, add_special_tokens=False)
        starts.append(len(ids))
        ids += tokenizer.tokenize(answer, add_special_tokens=False)
        rows.append([*ids, tokenizer.token_to_id(END)])
    x = tokenizer.pad([row[:-1] for row in rows])
    y = tokenizer.pad([row[1:] for row in rows])["token_ids"]
    columns = np.arange(y.shape[1])
    weights = (columns >= np.array(starts)[:, None] - 1) * x["padding_mask"]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(x, y, sample_weight=weights, batch_size=len(rows), epochs=epochs, verbose=0)
    predicted = np.argmax(model.predict(x, verbose=0), axis=-1)
    wrong = np.sum((predicted != y) * weights)
    assert not wrong, f"The model has not learnt {wrong} tokens."
    model.tokenizer = tokenizer
    model.save_to_preset(folder, verbose=False)


if __name__ == "__main__":
    write_preset(Path(sys.argv[1]))
