"""From a checkpoint to gradients; nothing here knows an index."""
