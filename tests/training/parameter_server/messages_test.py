from keras_deepseek.training.parameter_server.messages import ShardValues


def test_values_know_which_updates_they_have():
    values = ShardValues([], [], {}, num_updates=4, applied={3, 5}, settled_below=3)
    assert [values.has(number) for number in range(7)] == [
        *(True, True, True, True),
        *(False, True, False),
    ]
