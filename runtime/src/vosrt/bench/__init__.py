"""Measuring vosrt: ``vos-bench``, and what the scripts in ``benchmarks/`` share with it."""
