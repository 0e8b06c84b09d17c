"""Pipeline steps: read, call a pure function, write. Steps take and return small references, never tensors."""
