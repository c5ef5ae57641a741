"""Training: the DeepSpeed engine, the objective, the one loop, and what it reports."""
