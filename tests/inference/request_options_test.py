from keras_deepseek.inference.request_options import RequestOptions


def test_every_option_may_be_left_out():
    assert RequestOptions.__required_keys__ == frozenset()
    assert RequestOptions.__optional_keys__ == {
        "model",
        "version",
        "label",
        "timeout",
        "priority",
        "client",
    }
