"""The Anthropic API, one file per endpoint."""
