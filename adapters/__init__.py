"""Adapters: one package per way of getting at devices; they import from ``agent`` only words and pure helpers."""
