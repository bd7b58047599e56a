"""Texts of language models: requests, the answers as they are written, and the thread of a model.

`TextEngine` (`text_engine`) checks a prompt, and makes its requests (`text_request`).
`row_scheduler` shares the rows of one cache among them, and gives out the work (`row_work`); `pace`
forecasts how long they wait. These never wait, and get the time as an argument. The thread of
`text_loop` runs the work on a `RowModel`. A `ChoiceWriter` (`choice_writer`) writes the text of the
new tokens into the `TextAnswer` (`text_answer`).
"""
