"""`/v1/completions` as raw HTTP, and what chats share with it."""

import pytest

from tests.oracles.fake_row_model import ByteTokenizer
from tests.oracles.served_text import read_events

pytest.importorskip("uvicorn")


def test_usage_comes_last_or_in_each_chunk_if_asked_for(serve):
    with serve("Fine.") as (client, text):
        *events, last = read_events(
            client.chat(stream=True, stream_options={"include_usage": True})
        )
        length = len(text.prompts[0].encode())
        assert [event["usage"] for event in events] == [None] * len(events)
        assert last["choices"] == []
        usage = {"prompt_tokens": length, "completion_tokens": 6, "total_tokens": length + 6}
        assert last["usage"] == usage
        options = {"include_usage": True, "continuous_usage_stats": True}
        *events, last = read_events(client.complete(stream=True, stream_options=options))
        counts = [event["usage"]["completion_tokens"] for event in events]
        assert counts == sorted(counts)
        assert (counts[-1], last["usage"]["completion_tokens"]) == (6, 6)


def test_several_choices_and_prompts_are_numbered(serve):
    with serve("ab") as (client, _):
        choices = client.chat(n=3).content["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2]
        content = client.complete(["x", "yz"], n=2, echo=True).content
        texts = [(choice["index"], choice["text"]) for choice in content["choices"]]
        assert texts == [(0, "xab"), (1, "xab"), (2, "yzab"), (3, "yzab")]
        assert content["usage"]["prompt_tokens"] == 3
        assert content["usage"]["completion_tokens"] == 12
        texts, reasons = dict.fromkeys(range(4), ""), {}
        for event in read_events(client.complete([[120], [121]], n=2, stream=True)):
            choice = event["choices"][0]
            texts[choice["index"]] += choice["text"]
            reasons[choice["index"]] = choice["finish_reason"]
        assert texts == dict.fromkeys(range(4), "ab")
        assert reasons == dict.fromkeys(range(4), "stop")


@pytest.mark.parametrize(
    "fields",
    [{"stop": "do"}, {"stop": ["x", "do"]}, {"max_tokens": 4}, {"max_completion_tokens": 4}],
)
def test_an_answer_ends_where_it_is_told(serve, fields):
    with serve("How do you do?") as (client, _):
        choice = client.chat(**fields).content["choices"][0]
        assert choice["message"]["content"] == "How "
        assert choice["finish_reason"] == ("stop" if "stop" in fields else "length")


def test_the_end_token_can_be_ignored(serve):
    with serve("ab") as (client, _):
        content = client.complete(ignore_eos=True, max_tokens=30).content
    assert content["usage"]["completion_tokens"] == 30
    assert content["choices"][0]["finish_reason"] == "length"


def test_null_is_not_given_and_unknown_fields_are_ignored(serve):
    names = (
        "seed logprobs top_logprobs frequency_penalty n stop stream stream_options tools user "
        "tool_choice response_format max_tokens logit_bias chat_template_kwargs model "
        "reasoning_effort"
    )
    unknown = {"parallel_tool_calls": True, "store": False, "metadata": {}, "made_up": [1]}
    with serve("Fine.") as (client, _):
        content = client.chat(**dict.fromkeys(names.split()), **unknown).content
        assert content["choices"][0]["message"]["content"] == "Fine."
        content = client.complete(**dict.fromkeys(names.split()), suffix=None, echo=None).content
        assert content["choices"][0]["text"] == "Fine."


def test_a_model_without_a_chat_format_completes_only(serve):
    with serve("Fine.", has_chat=False) as (client, _):
        answered = client.chat()
        assert (answered.status, answered.content["error"]["param"]) == (400, "messages")
        assert "/v1/completions" in answered.content["error"]["message"]
        content = client.complete().content
        assert content["object"] == "text_completion"
        assert content["id"].startswith("cmpl-")
        assert content["choices"] == [
            {"index": 0, "text": "Fine.", "logprobs": None, "finish_reason": "stop"}
        ]


def test_a_completion_has_sixteen_tokens_unless_told(serve):
    with serve("x" * 100) as (client, _):
        assert client.complete().content["choices"][0]["text"] == "x" * 16


@pytest.mark.parametrize("prompt", ["abc", [97, 98, 99]])
def test_a_prompt_is_scored_as_lm_eval_reads_it(serve, prompt):
    """It takes `[context:-1]` of each list, and is greedy if no alternative is above the token."""
    settings = {"echo": True, "logprobs": 1, "max_tokens": 1, "seed": 1234, "temperature": 0}
    with serve("d") as (client, text):
        choice = client.complete(prompt, **settings).content["choices"][0]
        details = choice["logprobs"]
        assert choice["text"] == "abcd"
        assert details["tokens"] == list("abcd")
        assert details["text_offset"] == [0, 1, 2, 3]
        assert details["token_logprobs"] == [None, *map(pytest.approx, [-0.98, -0.99, -1.0])]
        assert details["top_logprobs"][0] is None
        for value, best in zip(
            details["token_logprobs"][1:], details["top_logprobs"][1:], strict=True
        ):
            assert max(best.values()) == value
        events = read_events(client.complete(prompt, **settings, stream=True))
        choices = [event["choices"][0] for event in events]
        assert "".join(choice["text"] for choice in choices) == "abcd"
        streamed = [token for choice in choices for token in choice["logprobs"]["tokens"]]
        offsets = [offset for choice in choices for offset in choice["logprobs"]["text_offset"]]
        assert (streamed, offsets) == (list("abcd"), [0, 1, 2, 3])
        num_tokens = text.engine.statistics().num_tokens
        settings["max_tokens"] = 0
        answered = client.complete(prompt, **settings).content
        (event,) = read_events(client.complete(prompt, **settings, stream=True))
        for choice in (answered["choices"][0], event["choices"][0]):
            assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
            assert choice["logprobs"]["tokens"] == list("abc")
        assert answered["usage"]["completion_tokens"] == 0
        assert text.engine.statistics().num_tokens == num_tokens


def test_a_half_character_is_no_broken_answer(serve):
    with serve("né") as (client, _):
        events = read_events(client.complete(stream=True, logprobs=0))
        texts = [event["choices"][0]["text"] for event in events]
        assert "".join(texts) == "né"
        assert ByteTokenizer().detokenize([0xC3]) == "�"
        tokens = [token for e in events for token in e["choices"][0]["logprobs"]["tokens"]]
        assert tokens == ["n", "�", "�", "<end>"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt[1]"),
        ({"prompt": [[1], [1.5]]}, "prompt[1]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [2**40], "echo": True}, "prompt"),
        ({"prompt": [1] * 1_000_000}, "prompt"),
        ({"prompt": "x" * 1_000_000}, "prompt"),
        ({"prompt": ["x"] * 2000}, "prompt"),
        ({"prompt": ["x"] * 1000, "n": 128}, "prompt"),
        ({"suffix": "the end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": 1}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4096}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
    ],
)
def test_an_error_names_the_field_of_a_completion(serve, fields, field):
    with serve() as (client, text):
        answered = client.complete(**{"prompt": "Hi", **fields})
        assert answered.status == 400, answered.content
        error = answered.content["error"]
        assert (error["type"], error["param"]) == ("invalid_request_error", field)
        assert len(error["message"]) < 1000
        assert text.prompts == []
