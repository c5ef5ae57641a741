"""Token folders: shards, their manifest, and training windows in shuffled order."""
