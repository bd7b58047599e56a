"""The rewrites of a graph, one a file."""

from collections.abc import Collection

from keras_deepseek.graph.ir import Graph, Pass, Rewrite
from keras_deepseek.graph.passes.attention import fuse_attention
from keras_deepseek.graph.passes.batch_norm import fold_batch_norms
from keras_deepseek.graph.passes.equal_operations import merge_equal_operations
from keras_deepseek.graph.passes.identities import remove_identities
from keras_deepseek.graph.passes.product_order import reorder_products
from keras_deepseek.graph.passes.split_sums import split_sums
from keras_deepseek.graph.passes.unread_rows import cut_unread_rows

PASSES: dict[str, Pass] = {
    "identities": remove_identities,
    "equal_operations": merge_equal_operations,
    "batch_norm": fold_batch_norms,
    "unread_rows": cut_unread_rows,
    "split_sums": split_sums,
    "product_order": reorder_products,
    "attention": fuse_attention,  # Last: products are not reordered through it.
}
"""The passes by name, in the order in which they run."""


def run_passes(graph: Graph, names: Collection[str], training: bool) -> dict[str, list[Rewrite]]:
    """Rewrites a graph by the named passes, and returns what each of them changed.

    Before any other pass, identities are removed: casts without effect stand between operations.
    """
    rewrites: dict[str, list[Rewrite]] = {name: [] for name in PASSES if name in names}
    if rewrites:
        removed = remove_identities(graph, training)
        if "identities" in rewrites:
            rewrites["identities"] += removed
    for name in (*PASSES, "equal_operations"):  # Later passes make equal operations too.
        if name in rewrites:
            rewrites[name] += PASSES[name](graph, training)
    return rewrites
