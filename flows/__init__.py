"""Order only: which step runs after which, and with what settings."""
