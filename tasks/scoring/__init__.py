"""What is done once per query set: query gradients, whitening, λ, one pass over the store."""
