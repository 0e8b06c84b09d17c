"""Which training examples most influenced this prediction? The front door: what a user imports."""
