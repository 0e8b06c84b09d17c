"""The demonstration: a corpus of facts, a model trained on it, and queries with known answers. Only flows import it."""
