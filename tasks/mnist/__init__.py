"""The equation taken apart on handwritten digits. Only flows import it."""
