import itertools

import pytest

from keras_deepseek.errors import InvalidInputError
from keras_deepseek.training.cluster.slurm import expand_node_list


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("login", "login"),
        ("a,b,c-1", "a b c-1"),
        ("node[01-03,7]", "node01 node02 node03 node7"),
        ("node[098-101]", "node098 node099 node100 node101"),
        ("node[9-11]", "node9 node10 node11"),
        ("node[5]", "node5"),
        ("a[1-2].local,b", "a1.local a2.local b"),
        ("rack[0-1]n[1-2]", "rack0n1 rack0n2 rack1n1 rack1n2"),
        ("x[1,3],y[2],z", "x1 x3 y2 z"),
        ("[1-2]a", "1a 2a"),
        (" n1 ", "n1"),
    ],
)
def test_brackets_are_expanded_in_order(text, nodes):
    assert list(expand_node_list("SLURM_NODELIST", text)) == nodes.split()


def test_a_long_list_is_not_written_out():
    nodes = expand_node_list("SLURM_NODELIST", "n[1-99999999999]")
    assert list(itertools.islice(nodes, 2)) == ["n1", "n2"]


@pytest.mark.parametrize(
    "text",
    ["", ",", "a,", "a,,b", "n[", "n]", "n[]", "n[1-]", "n[-1]", "n[2-1]", "n[a-b]", "n[1-2-3]",
     "n[1,]", "n[[1]]", "n[1", "n 1", "n[1]]"],
)  # fmt: skip
def test_a_malformed_list_is_refused_before_its_first_node(text):
    with pytest.raises(InvalidInputError, match="SLURM_NODELIST must be a list of nodes"):
        expand_node_list("SLURM_NODELIST", text)
