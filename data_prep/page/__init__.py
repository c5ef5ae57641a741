"""A page about a token folder: what is in it, and what became of its sources."""
