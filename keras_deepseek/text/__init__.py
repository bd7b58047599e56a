"""The terms that language models and the serving of them share. Importing it needs no Keras.

`SamplingOptions` (`sampling`) are the settings of an answer, and `StopFilter` (`stop_strings`) ends
its text. A `RowModel` (`row_model`) computes the tokens of many sequences at once: `models` has it,
and `inference` calls it.
"""
