"""The server: questions over HTTP as OpenAI's clients ask them, many at once."""
