"""Fine-tuning tasks: files, examples, input transformations, batches."""
