import asyncio

from keras_deepseek.inference.http.message import HttpError, HttpRequest, stream_events


def test_messages_share_no_headers():
    assert HttpRequest("GET", "/").headers is not HttpRequest("GET", "/").headers


def test_an_error_holds_what_the_client_is_told():
    error = HttpError(429, "Later.", (("retry-after", "1"),))
    assert (error.status, str(error), error.headers) == (429, "Later.", (("retry-after", "1"),))


def test_events_are_json_each_in_a_message_of_its_own():
    async def count():
        for number in range(2):
            yield {"token": number, "text": "a\nb"}

    async def read():
        return [piece async for piece in stream_events(count()).stream]

    assert asyncio.run(read()) == [
        b'data: {"token":0,"text":"a\\nb"}\n\n',
        b'data: {"token":1,"text":"a\\nb"}\n\n',
    ]
