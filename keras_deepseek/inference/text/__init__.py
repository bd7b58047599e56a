"""Texts of language models: the requests, and which piece of work the model does next.

Nothing here holds a tensor, starts a thread or waits: each call gets the time as an argument.
`row_scheduler` shares the rows of one cache among requests (`text_request`), and gives out the
work (`row_work`). `pace` forecasts how long they
wait. `sampling` checks the settings of a request, and `stop_strings` ends its text.
"""
