"""How work runs and is remembered: stages, costs, progress, Dask, shards."""
