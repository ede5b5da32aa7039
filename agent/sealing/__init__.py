"""From frames and gaps to signed records on disk."""
