"""The rewrites of a graph, one a file."""

from collections.abc import Collection

from keras_deepseek.graph.ir import Graph, Pass, Rewrite, Value
from keras_deepseek.graph.passes.attention import fuse_attention
from keras_deepseek.graph.passes.batch_norm import fold_batch_norms
from keras_deepseek.graph.passes.equal_operations import merge_equal_operations
from keras_deepseek.graph.passes.identities import remove_identities
from keras_deepseek.graph.passes.product_order import reorder_products
from keras_deepseek.graph.passes.split_sums import split_sums
from keras_deepseek.graph.passes.unread_rows import cut_unread_rows

PASSES: dict[str, Pass] = {
    "identities": remove_identities,
    "equal_operations": merge_equal_operations,  # Common subexpression elimination.
    "batch_norm": fold_batch_norms,
    "unread_rows": cut_unread_rows,  # Dead-row elimination.
    "split_sums": split_sums,
    "product_order": reorder_products,  # Matrix-chain order.
    "attention": fuse_attention,  # Last: products are not reordered through it.
}
"""The passes by name, in the order in which they run."""


def run_passes(graph: Graph, names: Collection[str], training: bool) -> dict[str, list[Rewrite]]:
    """Rewrites a graph by the named passes, and returns what each of them changed.

    Before any other pass, identities are removed: casts without effect stand between operations.
    """
    rewrites: dict[str, list[Rewrite]] = {name: [] for name in PASSES if name in names}
    if not rewrites:
        return rewrites
    # Later passes make equal operations too.
    for name in ("identities", *PASSES, "equal_operations"):
        if name in rewrites or name == "identities":
            new_rewrites = _run_pass(PASSES[name], graph, training)
            rewrites.get(name, []).extend(new_rewrites)
    return rewrites


def _run_pass(find: Pass, graph: Graph, training: bool) -> list[Rewrite]:
    replacements: dict[Value, Value] = {}
    rewrites = []
    for node, values, rewrite in find(graph, training):
        replacements |= {Value(node, index): value for index, value in enumerate(values)}
        rewrites += [rewrite] if rewrite else []
    graph.replace(replacements)
    return rewrites
