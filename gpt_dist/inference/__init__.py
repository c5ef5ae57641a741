"""Open a trained model with its tokenizer, score text and generate text."""
