import pytest

from keras_deepseek.inference.http.message import HttpError, HttpRequest
from keras_deepseek.inference.http.routing import ERROR, OBJECT, ErrorForm, Route, Router


async def answer(server, request, parameters):
    raise AssertionError("Nothing is answered here.")


def route(method, path, **options):
    return Route(method, path, answer, **options)


ROUTER = Router(
    [
        route("POST", "/v1/{name}:do", call="do"),
        route("POST", "/v1/{name}/v/{version}:do", call="do_version"),
        route("GET", "/v1/{name}", call="state"),
        route("GET", "/v1/{name}/a.b", call="dotted"),
        route("GET", "/fixed", call="fixed", is_open=True),
        route("POST", "/fixed", call="change"),
    ]
)


def find(method, path):
    return ROUTER.find(HttpRequest(method, path))


@pytest.mark.parametrize(
    ("method", "path", "call", "parameters"),
    [
        ("POST", "/v1/digits:do", "do", {"name": "digits"}),
        ("POST", "/v1/digits/v/12:do", "do_version", {"name": "digits", "version": "12"}),
        ("GET", "/v1/digits", "state", {"name": "digits"}),
        ("HEAD", "/v1/digits", "state", {"name": "digits"}),
        ("GET", "/v1/digits/a.b", "dotted", {"name": "digits"}),
        ("GET", "/v1/" + "d" * 1000, "state", {"name": "d" * 1000}),
        ("GET", "/fixed", "fixed", {}),
        ("HEAD", "/fixed", "fixed", {}),
        ("POST", "/fixed", "change", {}),
    ],
)
def test_a_route_is_found_with_the_parameters_of_its_path(method, path, call, parameters):
    for _ in range(2):  # The second time from what is kept.
        matched, received = find(method, path)
        assert (matched.call, dict(received)) == (call, parameters)


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/", "/v1/a/b", "/v1/a:b:do", "/v1/digits/a-b", "/fixed/", "/v1//v/1:do"],
)
def test_a_path_without_a_route_is_refused(path):
    with pytest.raises(HttpError, match=r"There is no path '/.* /openapi\.json lists") as caught:
        find("GET", path)
    assert caught.value.status == 404


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/v1/name/do", "Did you mean POST /v1/{name}:do?"),
        ("/v1/digits:od", "Did you mean POST /v1/{name}:do?"),
        ("/fixd", "Did you mean POST /fixed?"),
        ("/:do", "Did you mean POST /v1/{name}:do?"),
        ("/" + "x" * 10_000, "xxx"),
    ],
)
def test_the_nearest_route_is_named_for_a_wrong_path(path, hint):
    with pytest.raises(HttpError) as caught:
        find("POST", path)
    assert hint in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/digits:do", "POST"),
        ("POST", "/v1/digits", "GET, HEAD"),
        ("DELETE", "/fixed", "GET, POST, HEAD"),
    ],
)
def test_another_method_is_refused_with_those_that_are_allowed(method, path, allowed):
    words = allowed.replace(", ", " or ")
    with pytest.raises(HttpError, match=f"'{method}' is not allowed for .* Use {words}") as caught:
        find(method, path)
    assert (caught.value.status, caught.value.headers) == (405, (("allow", allowed),))


def test_a_path_has_the_form_of_errors_of_its_routes():
    form = ErrorForm("Mine", OBJECT, lambda message, status, field, code: [status, message, field])
    router = Router([route("POST", "/mine/{name}", error_form=form), route("GET", "/other")])
    assert router.error_form("/mine/x") is form
    for path in ("/other", "/mine", "/nowhere", ""):
        assert router.error_form(path) is ERROR


def test_a_path_is_open_if_one_of_its_routes_is():
    assert ROUTER.is_open("/fixed")
    assert not ROUTER.is_open("/v1/digits")
    assert not ROUTER.is_open("/nowhere")
