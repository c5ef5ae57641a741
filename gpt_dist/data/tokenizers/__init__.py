"""Tokenizers: sentencepiece, byte-pair encodings, and the tokenizer of a folder."""
