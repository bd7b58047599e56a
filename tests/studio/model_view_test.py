"""The numbers of the model view, computed by the page's own script in Node.js."""

import json
import shutil
import subprocess

import pytest

NODE = shutil.which("node")

# The script reads the address and the document of its page when it is loaded.
SCRIPT = """
globalThis.location = {hash: ""};
globalThis.document = {getElementById: () => null};
const {largestOf, ownOf, prepare} = await import("./model.js");
const {graph, profile} = JSON.parse(process.argv[2]);
const root = prepare(graph, profile);
const measure = (node) => (profile ? node.time : node.params);
const layer = largestOf(root, measure);
console.log(JSON.stringify(layer && [layer.path, ownOf(layer, measure)]));
"""


@pytest.fixture(scope="module")
def find_largest(root, tmp_path_factory):
    """Returns a function of a graph and a profile that runs the page's script."""
    if NODE is None:
        pytest.skip("Node.js is not installed")
    folder = tmp_path_factory.mktemp("page") / "static"
    shutil.copytree(root / "keras_deepseek/studio/static", folder)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "test.js").write_text(SCRIPT)

    def find(graph, profile):
        content = json.dumps({"graph": graph, "profile": profile})
        command = [NODE, folder / "test.js", content]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    return find


def layer(path, params=0, children=()):
    total = params + sum(child["params"] for child in children)
    content = {"path": path, "name": path, "children": list(children), "params": total}
    return {"kind": "layer", "reason": None, "edges": [], **content}


def test_the_headline_names_a_group_whose_own_operations_take_most_time(find_largest):
    parts = [layer(f"attention_1/{name}") for name in ("query", "key")]
    graph = layer("", children=[layer("attention_1", children=parts), layer("dense")])
    seconds = {"": [9, 9], "attention_1": [6, 5], "attention_1/query": [1, 0.75], "dense": [1, 0.5]}
    assert find_largest(graph, {"layers": seconds}) == ["attention_1", 11]


def test_the_headline_names_a_leaf_of_a_group_that_only_holds_layers(find_largest):
    graph = layer("", 9, [layer("block", 0, [layer("block/a", 3), layer("block/b", 4)])])
    assert find_largest(graph, None) == ["block/b", 4]
    assert find_largest(layer("", 9, [layer("a")]), None) is None
