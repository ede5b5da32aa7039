"""Evidence and what the verifier says of it, for people and programs."""
