"""A trained model and its tokenizer together: opening, scoring text, writing text."""
