"""The CustomResourceDefinition: the committed file is the generated one."""

import yaml

from keras_deepseek.operator.crd import make_crd
from keras_deepseek.operator.render import render_crd


def test_committed_file_is_the_generated_one(root):
    """To mend: keras-deepseek operator render --crds-only > kubernetes/base/crd.yaml."""
    assert (root / "kubernetes/base/crd.yaml").read_text(encoding="utf-8") == render_crd()


def test_is_small_enough_for_kubectl_apply():
    assert len(render_crd()) < 256 * 1024


def test_schema_is_structural():
    def check(node):
        assert not {"$ref", "additionalProperties"} & node.keys() or "properties" not in node
        if "x-kubernetes-preserve-unknown-fields" in node or "x-kubernetes-int-or-string" in node:
            return
        assert node["type"] in {"object", "array", "string", "integer", "boolean"}
        assert "default" not in node
        for child in node.get("properties", {}).values():
            check(child)
        if "items" in node:
            assert node["maxItems"] <= 64 if "x-kubernetes-list-type" not in node else True
            check(node["items"])

    (version,) = make_crd()["spec"]["versions"]
    check(version["schema"]["openAPIV3Schema"]["properties"]["spec"])


def test_rules_are_in_the_schema():
    text = yaml.safe_dump(make_crd())
    assert text.count("message:") > 8
    assert "minReplicas is above maxReplicas" in text
