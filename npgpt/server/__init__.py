"""The server: a trained model behind OpenAI's HTTP API, and a page to try it."""
