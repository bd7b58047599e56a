"""The page at `/chat` in a real browser: answers come as they are written, and can be stopped.

Not part of a plain `tox`: `tox -e browser`, with Chromium by `playwright install chromium`, or at
the path that the variable `CHROMIUM` names.
"""

import pytest

from integration_tests.served_models import Negation
from integration_tests.studio_pages import expect
from tests.oracles.served_text import ChatTokenizer, serve_text


def serve_chat(*arguments, **options):
    return serve_text(*arguments, tensor_model=Negation(), **options)


@pytest.fixture
def open_chat(browser):
    """Returns a function that opens the page of a server, which must log no error."""
    pages = []

    def open_chat(client):
        page = browser.new_page()
        page.problems, page.addresses = [], []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("request", lambda request: page.addresses.append(request.url))
        page.goto(f"{client.server.url}/chat")
        pages.append((page, client.server.url))
        return page

    yield open_chat
    for page, url in pages:
        assert page.problems == []
        assert all(address.startswith((url, "data:")) for address in page.addresses)
        page.close()


def ask(page, text):
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answer_of(page, number=-1):
    return page.locator("#messages > .assistant").all()[number]


def test_a_conversation_goes_on_with_what_was_said(open_chat):
    with serve_chat("Fine.") as (client, text):
        page = open_chat(client)
        ask(page, "How are you?")
        expect(page, "6 tokens")
        expect(page, "tokens/s")
        ask(page, "<b>And</b> now?")
        page.wait_for_function("document.querySelectorAll('#messages > .assistant').length === 2")
        expect(page, "<b>And</b> now?")
        page.locator("#send:enabled").wait_for()
        assert answer_of(page).locator(".text").inner_text() == "Fine."
        assert text.prompts[1].endswith(
            "Fine.<｜end▁of▁sentence｜><｜User｜><b>And</b> now?<｜Assistant｜></think>"
        )
        page.get_by_role("button", name="New chat").click()
        assert page.locator("#messages > li").count() == 0


def test_reasoning_is_folded(open_chat):
    with serve_chat("Hm, hm.</think>Yes.") as (client, _):
        page = open_chat(client)
        page.get_by_label("Reasoning").select_option("on")
        ask(page, "Why?")
        expect(page, "Yes.")
        assert not page.get_by_text("Hm, hm.").is_visible()
        page.get_by_text("Reasoning", exact=True).last.click()
        assert page.get_by_text("Hm, hm.").is_visible()
        assert answer_of(page).locator(".text").inner_text() == "Yes."


def test_an_answer_is_shown_while_it_is_written_and_stops_on_demand(open_chat):
    with serve_chat("x" * 3000) as (client, text):
        text.model.hold("decode", 5)
        page = open_chat(client)
        page.get_by_label("Most tokens").fill("2000")
        ask(page, "Go on")
        expect(page, "xxxx")
        assert text.model.is_held.is_set()
        page.get_by_role("button", name="Stop").click()
        page.locator("#send:enabled").wait_for()
        text.model.release()
        while text.engine.statistics().num_running:
            page.wait_for_timeout(10)
        assert text.engine.statistics().outcomes == {"cancelled": 1}
        assert page.locator("#problem").inner_text() == ""


def test_an_error_is_told_and_the_message_stays_to_be_changed(open_chat):
    with serve_chat(has_chat=False) as (client, _):
        page = open_chat(client)
        ask(page, "Hello")
        expect(page, "no chat template")
        assert page.get_by_label("Message", exact=True).input_value() == "Hello"


def test_a_token_opens_what_is_closed(open_chat):
    options = {"tokens": ["secret"]}
    with serve_chat("Fine.", server_options=options) as (client, _):
        page = open_chat(client)
        expect(page, "A token is required")
        page.get_by_label("Token", exact=True).fill("secret")
        page.get_by_label("Token", exact=True).press("Tab")
        page.wait_for_function("document.getElementById('model').options.length === 1")
        ask(page, "Hello")
        expect(page, "Fine.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_control_has_a_name_and_the_text_a_contrast(open_chat, scheme):
    with serve_chat("Fine.", ChatTokenizer("v4")) as (client, _):
        page = open_chat(client)
        page.emulate_media(color_scheme=scheme)
        unnamed = page.evaluate(
            "[...document.querySelectorAll('input, select, textarea, button')]"
            ".filter((control) => !(control.labels?.length || control.textContent.trim()))"
            ".map((control) => control.id)"
        )
        assert unnamed == []
        colors = page.evaluate(
            "(() => { const style = getComputedStyle(document.body);"
            " return [style.color, style.backgroundColor]; })()"
        )
        ink, paper = (sum(map(int, color[4:-1].split(","))) for color in colors)
        assert (ink < 150, paper > 600) == (scheme == "light",) * 2
