"""OpenAI's API: its requests, answers and errors. The handlers are in `http.openai_rest`."""
