"""``edge-agent support``: what a supporter needs to know of a box, in one file, without secrets and values."""
