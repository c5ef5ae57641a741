"""Turn documents into clean text."""
