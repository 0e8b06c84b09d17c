"""What is done once per checkpoint, before any query: shards, V, R_train, withdrawals, contents."""
