"""The graph: order, replacement and keys of values."""

import numpy as np

from keras_deepseek.graph.ir import INPUT, Graph, Node, Spec, Value, value_key

SPEC = Spec((2, 3), "float32")


def chain():
    """Returns a graph of an input and three nodes, and the nodes."""
    first = Node(INPUT, [SPEC])
    second = Node("Exp", [SPEC], args=(Value(first),))
    third = Node("Add", [SPEC], args=([Value(second), {"y": (Value(first), 2)}],))
    graph = Graph([first], [Value(third)], [None], 0, {})
    return graph, first, second, third


def test_nodes_come_after_what_they_read():
    graph, *nodes = chain()
    assert graph.nodes() == nodes
    assert nodes[2].values() == [Value(nodes[1]), Value(nodes[0])]
    assert graph.users()[Value(nodes[0])] == [nodes[1], nodes[2]]


def test_values_are_replaced_everywhere_at_the_same_time():
    graph, first, second, third = chain()
    new = Node("Log", [SPEC], args=(Value(first),))
    graph.replace({Value(second): Value(new)})
    assert graph.nodes() == [first, new, third]
    assert third.args == ([Value(new), {"y": (Value(first), 2)}],)


def test_keys_tell_numbers_of_other_types_apart():
    assert len({value_key(constant) for constant in (1, 1.0, True, "1", None)}) == 5
    assert value_key([np.ones(2), slice(1)]) == value_key([np.ones(2), slice(1)])
    assert value_key((1,)) != value_key([1])
