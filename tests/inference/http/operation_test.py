from keras_deepseek.inference.http.routing import FLAG, TEXT, fields


def test_an_object_names_its_required_and_its_optional_fields():
    assert fields({"name": TEXT}, ready=FLAG) == {
        "type": "object",
        "properties": {"name": TEXT, "ready": FLAG},
        "required": ["name"],
    }
