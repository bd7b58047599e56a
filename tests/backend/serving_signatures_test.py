from keras_deepseek.backend.serving_signatures import ServingSignatures


def test_it_is_true_where_there_is_one():
    assert not ServingSignatures()
    assert ServingSignatures(classes=())
    assert ServingSignatures(regresses=True)
