"""Clean documents."""
