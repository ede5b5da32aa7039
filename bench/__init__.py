"""Benchmarks: each figure beside a reference measured in the same run. Run by ``bench/run``."""
