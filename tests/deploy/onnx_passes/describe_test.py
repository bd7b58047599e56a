from keras_deepseek import __version__
from keras_deepseek.deploy.onnx_passes.describe import describe


def test_a_file_says_where_it_comes_from(dense):
    dense.doc_string = "made at noon"
    for _ in range(2):
        describe(dense, {"name": "digits", "inputs": "x"})
    assert dense.producer_name == "keras_deepseek"
    assert dense.producer_version == __version__
    assert dense.graph.name == "digits"
    assert not dense.doc_string
    found = [(entry.key, entry.value) for entry in dense.metadata_props]
    assert found == [("inputs", "x"), ("name", "digits")]
