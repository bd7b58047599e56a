"""Tiny language models of KerasHub with tokenizers, whose answers are far from even."""

import functools
import io

import keras_hub
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from tests.oracles.trained_tokenizer import TEXT

LENGTH = 128


def make_task(family):
    """Returns a task whose `generate` is greedy, and ends some texts early."""
    make, seed = _FAMILIES[family]
    tokenizer, preprocessor, backbone, task = make()
    task = task(backbone, preprocessor(tokenizer, sequence_length=LENGTH))
    rng = np.random.default_rng(seed)
    for variable in task.trainable_variables:
        if len(variable.shape) > 1:
            variable.assign(rng.normal(size=variable.shape) * 0.3)
    task.compile(sampler="greedy")
    return task


def make_byte_tokenizer():
    """Returns a tokenizer of bytes, with `he` as 256 and the token of both ends as 257."""
    vocabulary = {letter: index for index, letter in enumerate(sorted(ByteLevel.alphabet()))}
    for token in ("he", "<|endoftext|>"):
        vocabulary[token] = len(vocabulary)
    return keras_hub.models.GPT2Tokenizer(vocabulary=vocabulary, merges=["h e"])


@functools.cache
def train_sentencepiece(start, end):
    """Returns a model of SentencePiece whose unknown characters are bytes."""
    import sentencepiece

    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split(". ")),
        model_writer=file,
        vocab_size=330,
        model_type="BPE",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        bos_piece=start,
        eos_piece=end,
    )
    return file.getvalue()


def _make_gpt2():
    models = keras_hub.models
    backbone = models.GPT2Backbone(260, 2, 4, 32, 48, max_sequence_length=2 * LENGTH)
    tokenizer = make_byte_tokenizer()
    return tokenizer, models.GPT2CausalLMPreprocessor, backbone, models.GPT2CausalLM


def _make_llama():
    models = keras_hub.models
    tokenizer = models.LlamaTokenizer(train_sentencepiece("<s>", "</s>"))
    backbone = models.LlamaBackbone(330, 2, 4, 32, 48, 2)
    return tokenizer, models.LlamaCausalLMPreprocessor, backbone, models.LlamaCausalLM


def _make_gemma():
    models = keras_hub.models
    tokenizer = models.GemmaTokenizer(train_sentencepiece("<bos>", "<eos>"))
    backbone = models.GemmaBackbone(330, 2, 4, 2, 32, 64, 8)
    return tokenizer, models.GemmaCausalLMPreprocessor, backbone, models.GemmaCausalLM


_FAMILIES = {"gpt2": (_make_gpt2, 6), "llama": (_make_llama, 7), "gemma": (_make_gemma, 3)}
"""The functions that make the parts of tasks, and the seeds of their weights."""
