"""Clients that nobody here wrote, against `keras-deepseek serve` with a language model.

The model was taught its answers (`text_model`), so that each client can be held to what it got.
`tox -e text-clients` has the clients; each is skipped where it is not installed.
`text_openai_test` has openai's.
"""

import json
import os
import queue
import subprocess
import sys

import numpy as np
import pytest

from integration_tests.text_model import (
    CALL,
    CONTINUATION,
    GREETING,
    HELLO,
    MAX_LENGTH,
    NAME,
    PROMPT,
    SCHEMA,
    SECONDS,
    SUM,
    THINKING,
    THOUGHT,
    TOOL,
    WEATHER,
)

pytestmark = [
    pytest.mark.filterwarnings("default"),  # The warnings of the clients are their own.
    pytest.mark.timeout(1800),  # To teach the model takes minutes on a busy machine.
]


@pytest.fixture
def url(text_server):
    return f"{text_server[0]}/v1"


# langchain-openai


@pytest.fixture
def langchain(import_text_client, url):
    package = import_text_client("langchain_openai")
    return package.ChatOpenAI(
        model=NAME, base_url=url, api_key="none", temperature=0, max_retries=0, timeout=SECONDS
    )


def add_up(parts):
    first, *others = parts
    for part in others:
        first += part
    return first


def test_langchain_chats_and_streams(langchain):
    answer = langchain.invoke("Hi")
    assert answer.content == GREETING
    assert answer.usage_metadata["output_tokens"] > 1
    parts = list(langchain.stream("Hi", stream_usage=True))
    assert len(parts) > 5
    whole = add_up(parts)
    assert whole.content == GREETING
    assert whole.usage_metadata == answer.usage_metadata
    assert whole.response_metadata["finish_reason"] == "stop"


def test_langchain_gets_tool_calls(langchain):
    bound = langchain.bind_tools([TOOL])
    for answer in (bound.invoke(WEATHER), add_up(bound.stream(WEATHER))):
        (call,) = answer.tool_calls
        assert (call["name"], call["args"]) == (CALL["name"], CALL["arguments"])


def test_langchain_reads_structured_output(langchain):
    model = langchain.with_structured_output(SCHEMA, method="json_schema", strict=True)
    assert model.invoke(SUM[0]["content"]) == {"total": 5}


def test_langchain_s_legacy_completions(import_text_client, url):
    package = import_text_client("langchain_openai")
    model = package.OpenAI(model=NAME, base_url=url, api_key="none", temperature=0, max_tokens=64)
    assert model.invoke(PROMPT) == CONTINUATION
    assert "".join(model.stream(PROMPT)) == CONTINUATION


# litellm


@pytest.fixture
def litellm(import_text_client, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    package = import_text_client("litellm")
    package.suppress_debug_info = True
    return package


def test_litellm_chats_streams_and_completes(litellm, url):
    options = {"api_base": url, "api_key": "none", "num_retries": 0, "temperature": 0}
    chat = {"model": f"openai/{NAME}", **options}
    assert litellm.completion(messages=HELLO, **chat).choices[0].message.content == GREETING
    parts = list(
        litellm.completion(
            messages=SUM,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=THINKING,
            **chat,
        )
    )
    whole = litellm.stream_chunk_builder(parts)
    assert whole.choices[0].message.content == "5"
    assert whole.choices[0].message.reasoning_content == THOUGHT
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens > 1
    text = litellm.text_completion(
        model=f"text-completion-openai/{NAME}", prompt=PROMPT, max_tokens=64, **options
    )
    assert text.choices[0].text == CONTINUATION
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(messages=HELLO, **{**chat, "temperature": -1})


# lm-eval


def log_likelihood(model, tokenizer, context, continuation):
    """Returns what the model itself says, in float64, and whether each token is its best."""
    prompt = tokenizer.tokenize(context, add_special_tokens=False)
    ids = tokenizer.tokenize(context + continuation, add_special_tokens=False)
    logits = model.predict(tokenizer.pad([ids]), verbose=0)[0].astype("float64")
    logits -= logits.max(-1, keepdims=True)
    table = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows, targets = np.arange(len(prompt) - 1, len(ids) - 1), ids[len(prompt) :]
    return table[rows, targets].sum(), bool((table[rows].argmax(-1) == targets).all())


@pytest.mark.parametrize("extra", ["", ",tokenized_requests=False"])
def test_lm_eval_scores_as_the_model_itself_does(
    import_text_client, text_preset, url, extra, monkeypatch
):
    import_text_client("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    from keras_deepseek.models import CausalLM

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    scorer = LocalCompletionsAPI.create_from_arg_string(
        f"model={NAME},base_url={url}/completions,tokenizer={text_preset},num_concurrent=1,"
        f"max_retries=1,max_length={MAX_LENGTH - 1}{extra}"
    )
    pairs = [(PROMPT, CONTINUATION), (PROMPT, " five, six")]
    pairs += [("Hello", " the answer is"), ("日本", "語 Häufig")]
    requests = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
    model = CausalLM.from_preset(text_preset, verbose=False)
    for (score, is_greedy), pair in zip(scorer.loglikelihood(requests), pairs, strict=True):
        expected, is_best = log_likelihood(model, model.tokenizer, *pair)
        assert score == pytest.approx(expected, abs=1e-5)
        assert is_greedy == is_best


def test_lm_eval_generates(import_text_client, text_preset, url, monkeypatch):
    import_text_client("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    writer = LocalCompletionsAPI.create_from_arg_string(
        f"model={NAME},base_url={url}/completions,tokenizer={text_preset},max_retries=1"
    )
    settings = {"until": [", five"], "max_gen_toks": 64, "temperature": 0}
    requests = [Instance("generate_until", {}, (PROMPT, settings), n) for n in range(2)]
    assert writer.generate_until(requests) == [" three, four"] * 2


# guidellm


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_guidellm_measures_as_many_tokens_as_it_asks_for(
    import_text_client, text_preset, text_server, route, tmp_path
):
    import_text_client("guidellm")
    target = f"kind=openai_http,target={text_server[0]},model={NAME},request_format={route}"
    report = tmp_path / "report.json"
    code = "from guidellm.__main__ import cli; cli()"
    command = [
        *(sys.executable, "-c", code, "run", "--backend", target),
        *("--tokenizer", f"kind=huggingface_auto,model={text_preset}"),
        *("--data", "kind=synthetic_text,prompt_tokens=16,output_tokens=5"),
        *("--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=3"),
        *("--output", f"kind=json,path={report}", "--disable-console-interactive"),
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    requests = benchmark["requests"]
    assert len(requests["successful"]) == 3
    assert not requests["errored"]
    assert {request["output_tokens"] for request in requests["successful"]} == {5}


# tritonclient


@pytest.fixture
def stream_infer(import_text_client, text_server):
    """Returns a function that sends requests in one stream and returns the responses by id."""
    triton = import_text_client("tritonclient.grpc")

    def run(requests, **options):
        received = queue.Queue()
        responses = {str(number): [] for number in range(len(requests))}
        num_open = len(requests)
        with triton.InferenceServerClient(text_server[1]) as client:
            client.start_stream(lambda result, error: received.put((result, error)))
            for number, values in enumerate(requests):
                inputs = []
                for name, value in values.items():
                    is_flag = isinstance(value, bool)
                    inputs.append(triton.InferInput(name, [1], "BOOL" if is_flag else "BYTES"))
                    data = np.array(
                        [value if is_flag else value.encode()], bool if is_flag else object
                    )
                    inputs[-1].set_data_from_numpy(data)
                client.async_stream_infer(NAME, inputs, request_id=str(number), **options)
            while num_open:
                result, error = received.get(timeout=SECONDS)
                if error is not None:
                    responses[str(number)].append(error)
                    num_open -= 1
                    continue
                response = result.get_response()
                responses[response.id].append(result.as_numpy("text_output"))
                num_open -= response.parameters["triton_final_response"].bool_param
            client.stop_stream()
        return list(responses.values())

    return run


def settings(**values):
    return json.dumps({"temperature": 0, "max_tokens": 64, **values})


def test_tritonclient_streams_several_texts_at_once(stream_infer):
    request = {"text_input": PROMPT, "stream": True, "sampling_parameters": settings()}
    whole = {"text_input": PROMPT, "sampling_parameters": settings()}
    pieces, others, (text,) = stream_infer([request, request, whole])
    assert b"".join(array.item() for array in pieces).decode() == CONTINUATION
    assert len(pieces) > 2
    assert b"".join(array.item() for array in others).decode() == CONTINUATION
    assert text.item().decode() == PROMPT + CONTINUATION


def test_tritonclient_gets_an_empty_last_response_where_it_asks_for_one(stream_infer):
    request = {"text_input": PROMPT, "stream": True, "sampling_parameters": settings(n=2)}
    ((*pieces, end),) = stream_infer([request], enable_empty_final_response=True)
    assert end is None
    texts = [b"".join(array[choice] for array in pieces).decode() for choice in range(2)]
    assert texts == [CONTINUATION] * 2


def test_tritonclient_gets_an_error_in_its_stream(stream_infer):
    ((error,),) = stream_infer([{"text_input": PROMPT, "sampling_parameters": settings(n=0)}])
    assert "`n`" in str(error)
