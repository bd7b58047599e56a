import socket
import threading

import numpy as np
import pytest

from keras_deepseek.artifacts import Signature
from keras_deepseek.inference.executors.isolated_model import receive_message, send_message
from keras_deepseek.inference.executors.model_worker import open_source, work
from tests.oracles.faulty_executor import FAILS, Faulty

SOURCE = "tests.oracles.faulty_executor:Faulty"


@pytest.mark.torch_alone
def test_a_source_is_a_path_or_a_function_of_a_module(bundle_of):
    assert open_source(SOURCE, ()).signature is Faulty.signature
    bundle = bundle_of("keras")
    assert open_source(str(bundle.path), ()).signature == bundle.manifest.signature


def test_it_says_its_signature_and_answers_until_the_other_end_is_closed():
    ours, theirs = socket.socketpair()
    worker = threading.Thread(target=work, args=(theirs, SOURCE, ()))
    worker.start()
    content, _ = receive_message(ours)
    assert Signature.from_dict(content["signature"]) == Faulty.signature
    for value, expected in ((1, {}), (FAILS, {"kind": "ArithmeticError", "error": "a row fails"})):
        send_message(ours, {}, {"x": np.full((1, 2), value, "float32")})
        assert receive_message(ours)[0] == expected
    ours.close()
    worker.join(60)
    assert not worker.is_alive()
    theirs.close()


def test_what_can_not_be_opened_is_told():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        work(theirs, "no.such.module:function", ())
        assert receive_message(ours)[0]["kind"] == "ModuleNotFoundError"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        work(theirs, "tests.oracles.faulty_executor:nothing", ())
        assert receive_message(ours)[0]["kind"] == "InvalidInputError"
