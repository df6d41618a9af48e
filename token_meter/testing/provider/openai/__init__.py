"""The OpenAI API (and Azure's and every compatible one), one file per endpoint."""
