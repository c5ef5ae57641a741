"""Builds of token folders: jobs for many processes, in a folder that a rerun continues."""
