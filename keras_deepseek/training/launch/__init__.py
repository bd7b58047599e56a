"""`keras-deepseek launch`: one process a rank, watched until the last of them has ended.

`plan` checks what was asked for, `launcher` runs it, `job` is one attempt and `rank_process` one
process of it. Nothing here loads Keras: the processes do, and they need the memory.
"""
