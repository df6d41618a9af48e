"""Meter every LLM call once, exactly, durably, to the right customer."""
