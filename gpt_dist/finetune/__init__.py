"""Fine-tuning: a task's head, objective, data, validation, results and predictions."""
