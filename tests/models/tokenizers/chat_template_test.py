import sys

import pytest

from keras_deepseek.errors import InvalidInputError, MissingExtraError
from keras_deepseek.models.tokenizers.chat_template import render_chat

MESSAGES = [{"role": "user", "content": "Hello <b>"}, {"role": "assistant", "content": "Hi"}]
TEMPLATE = """{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}
    {%- if loop.index0 == 1 %}{% generation %}
{{ message['content'] }}{% endgeneration %}
    {%- else %}<{{ message.role }}>{{ message['content'] }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""


@pytest.fixture(autouse=True)
def _jinja2():
    pytest.importorskip("jinja2")


def test_a_conversation_is_written_as_the_template_has_it():
    text = render_chat(TEMPLATE, MESSAGES, bos_token="<s>", add_generation_prompt=True)
    assert text == "<s><user>Hello <b>Hi<assistant>"


def test_what_templates_use_is_there():
    loop = "{% for m in messages %}{{ m.role }}{% break %}{% endfor %}"
    assert render_chat(loop, MESSAGES) == "user"
    assert render_chat("{{ x | tojson }}", [], x={"é": "<"}) == '{"é": "<"}'
    assert render_chat("{{ x | tojson(indent=1) }}", [], x=[1]) == "[\n 1\n]"
    assert render_chat("{{ strftime_now('%Y') }}", []).startswith("20")


def test_what_the_template_refuses_is_told():
    with pytest.raises(InvalidInputError, match="refused these messages: no system here"):
        render_chat(TEMPLATE, [{"role": "system", "content": ""}])
    with pytest.raises(InvalidInputError, match="refused these messages"):
        render_chat("{{ messages[0]['content'] + 1 }}", MESSAGES)


@pytest.mark.parametrize("messages", ["Hi", ["Hi"], [{"role": "user"}], [{"content": "Hi"}]])
def test_what_is_no_message_is_told(messages):
    with pytest.raises(
        InvalidInputError, match=r'the form \[{"role": "user", "content": "Hello"}\]'
    ):
        render_chat(TEMPLATE, messages)
    render_chat(TEMPLATE, [{"role": "assistant", "tool_calls": []}])


def test_a_template_that_is_none_is_told_with_its_line():
    with pytest.raises(InvalidInputError, match="not valid, line 2"):
        render_chat("\n{% for %}", MESSAGES)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_can_do_nothing_but_write(template):
    with pytest.raises(InvalidInputError):
        render_chat(template, list(MESSAGES))


def test_without_jinja2_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"keras_deepseek\[text\]"):
        render_chat(TEMPLATE, MESSAGES)
