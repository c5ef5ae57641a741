"""Files and folders: written safely, read in place."""
