"""The chat backend over remote services with OpenAI's HTTP API, which are called upstreams."""
