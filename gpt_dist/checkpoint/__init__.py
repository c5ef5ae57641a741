"""Sharded checkpoints that open in any layout: format, saving, loading, finding the newest."""
