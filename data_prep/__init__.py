"""Prepare token shards: read books, clean, deduplicate, train a tokenizer, encode, verify."""
