"""Studio: a page that shows a model, its training, and where the time goes.

It reads run records, and never imports Keras. A poll of the page goes through `server`, `store`
(the runs of a folder), `run_reader` (one record) and `reduction` (points to pixels).
"""

from keras_deepseek.studio.studio import Studio, launch_studio

__all__ = ["Studio", "launch_studio"]


def __dir__() -> list[str]:
    return sorted(__all__)
