"""Transports: one module for each kind of broker, loaded only when a channel names it."""
