"""Contamination: the texts of tests that occur in a token folder."""
