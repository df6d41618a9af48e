"""The Gemini API and Vertex AI, one file per endpoint."""
