"""Delivering what the outbox holds: in order, again after an outage, and by order."""
