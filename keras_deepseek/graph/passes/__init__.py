"""The passes that rewrite a graph, in the order in which they run."""

from collections.abc import Collection

from keras_deepseek.graph.ir import Graph, Pass, Rewrite, Value
from keras_deepseek.graph.passes.dead_rows import eliminate_dead_rows
from keras_deepseek.graph.passes.fusions import fold_batch_norms, fuse_attention
from keras_deepseek.graph.passes.matrix_chain_order import reorder_products, split_sums
from keras_deepseek.graph.passes.redundant_operations import (
    merge_common_subexpressions,
    remove_identities,
)

PASSES: dict[str, Pass] = {
    "identities": remove_identities,
    "equal_operations": merge_common_subexpressions,  # Common subexpression elimination.
    "batch_norm": fold_batch_norms,
    "unread_rows": eliminate_dead_rows,  # Dead-row elimination.
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
