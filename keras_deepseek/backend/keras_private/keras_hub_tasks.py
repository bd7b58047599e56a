"""Private functions of KerasHub's tasks."""

from typing import Any


def fill_cache(task: Any, token_ids: Any) -> Any:
    """Returns a cache of KerasHub's `CausalLM` with as many slots as there are tokens, filled."""
    return task._build_cache(token_ids)[1]
