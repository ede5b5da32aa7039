"""Evidence: what is signed, how it is written down, and how it is checked (docs/evidence.md). Pure: no clock, no
socket, no file. ``verify`` needs cbor2 and coincurve only.
"""
