"""What the tests of OpenAI's API share."""

import pytest

from tests.oracles.served_text import serve_text


@pytest.fixture
def serve(doubler):
    """Returns `serve_text` beside a model of tensors."""

    def serve(*arguments, **options):
        return serve_text(*arguments, tensor_model=doubler, **options)

    return serve
