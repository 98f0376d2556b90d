"""seap serve: an OpenAI-compatible server over one task runtime."""
