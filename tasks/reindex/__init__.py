"""Checkpoints as they appear, and what changed between them. Only flows import it."""
