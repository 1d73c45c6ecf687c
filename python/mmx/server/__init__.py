"""The HTTP server of mmx: OpenAI-compatible endpoints in front of one engine, without torch."""
