"""The page at `/` in a real browser: models are tried, and nothing is loaded from elsewhere.

Not part of a plain `tox`: `tox -e browser`, with Chromium by `playwright install chromium`, or at
the path that the variable `CHROMIUM` names.
"""

import json
import time

import pytest

from integration_tests.served_models import serve

SECONDS = 60


def wait_for(page, expression):
    """Returns what an expression gives once it is true. The page's policy forbids `eval`."""
    end = time.monotonic() + SECONDS
    while not (value := page.evaluate(expression)):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(20)
    return value


@pytest.fixture
def page(browser):
    page = browser.new_page()
    page.problems, page.addresses = [], []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on(
        "console", lambda line: page.problems.append(line.text) if line.type == "error" else None
    )
    page.on("request", lambda request: page.addresses.append(request.url))
    yield page
    page.close()


def send(page):
    page.evaluate("document.getElementById('time').textContent = ''")
    page.click("#send")
    wait_for(page, "document.getElementById('time').textContent")
    return page.inner_text("#time").split(",")[0], json.loads(page.inner_text("#answer"))


def choose(page, model, form, output):
    page.select_option("#model", model)
    wait_for(page, f"document.getElementById('tensors').textContent.includes('{output}')")
    page.select_option("#form", form)


def test_each_model_answers_its_example_in_each_form(page):
    with serve() as server:
        page.goto(f"{server.url}/")
        wait_for(page, "document.querySelectorAll('#tensors tr').length")
        choose(page, "negation", "rows", "y")
        page.fill("#body", '{"instances": [[1, 2, 3]]}')
        assert send(page) == ("Status 200", {"predictions": [[-1, -2, -3]]})
        choose(page, "negation", "columns", "y")
        assert send(page) == ("Status 200", {"outputs": [[0, 0, 0]]})
        choose(page, "mixture", "rows", "label")
        assert send(page) == ("Status 200", {"predictions": [{"sum": [0], "label": "text"}]})
        choose(page, "mixture", "v2", "label")
        status, answer = send(page)
        assert (status, answer["outputs"][1]["data"]) == ("Status 200", ["text"])
        assert page.problems == []
        assert all(address.startswith(server.url) for address in page.addresses)


def test_the_numbers_live(page):
    with serve() as server:
        page.goto(f"{server.url}/")
        wait_for(page, "document.querySelectorAll('#tensors tr').length")
        wait_for(page, "parseFloat(document.getElementById('rate').textContent) >= 0")
        send(page)
        rate = wait_for(page, "parseFloat(document.getElementById('rate').textContent)")
        assert rate > 0


def test_a_token_opens_what_is_closed(page):
    with serve(tokens=["secret"]) as server:
        page.goto(f"{server.url}/")
        assert "A token is required" in wait_for(
            page, "document.getElementById('problem').textContent"
        )
        page.fill("#token", "secret")
        page.dispatch_event("#token", "change")
        wait_for(page, "document.querySelectorAll('#tensors tr').length")
        assert send(page)[0] == "Status 200"


def test_a_script_that_is_not_the_page_s_does_not_run(page):
    with serve() as server:
        page.goto(f"{server.url}/")
        page.evaluate(
            "const one = document.createElement('script'); one.textContent = 'window.ran = 1';"
            "document.body.append(one)"
        )
        assert page.evaluate("window.ran === undefined")


@pytest.mark.parametrize("is_named", [True, False], ids=["named", "other"])
def test_a_page_of_a_named_origin_calls_models_and_nothing_else(browser, is_named):
    call = """([url, body, token]) => fetch(url, {
        method: "POST", body,
        headers: {"authorization": `Bearer ${token}`, "content-type": "application/json"},
    }).then((answer) => answer.status, () => "blocked")"""
    options = {"model_control": "explicit", "management_tokens": ["manager"]}
    with serve() as site:  # Its page has a policy, but not its JSON.
        origins = [site.url] if is_named else ["https://app.example.com"]
        with serve(tokens=["secret"], cors_origins=origins, **options) as server:
            page = browser.new_page()
            page.goto(f"{site.url}/healthz")
            statuses = [
                page.evaluate(call, [server.url + path, body, token])
                for path, body, token in (
                    ("/v1/models/negation:predict", '{"instances": [[1, 2, 3]]}', "secret"),
                    ("/v1/models/negation:predict", "{", "secret"),
                    ("/v1/models/negation:predict", "{}", "wrong"),
                    ("/v2/repository/models/negation/unload", "{}", "manager"),
                )
            ]
            page.close()
            assert list(server.service.engine.models) == ["negation", "mixture"]
    assert statuses == [200, 400, 401, "blocked"] if is_named else ["blocked"] * 4
