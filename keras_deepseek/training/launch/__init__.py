"""`keras-deepseek launch`: starts one process for each rank, and watches them until all have ended.

`plan` checks the arguments, and `launcher` runs them. A `job` is one attempt, and a `rank_process`
one of its processes. Nothing here loads Keras: the processes do, and need the memory.
"""
