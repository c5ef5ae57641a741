"""Token shards, their order and their reading; free of torch, so that data_prep can use it."""
