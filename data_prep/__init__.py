"""Books to token shards: read, clean, deduplicate, train a tokenizer, encode, verify."""
