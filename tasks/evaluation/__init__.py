"""Judge rankings, never make them: evidence, metrics, tail-patch, costs."""
