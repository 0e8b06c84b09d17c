"""What is on disk, and nothing else: layout, manifests, the gradient store, corpora and results."""
