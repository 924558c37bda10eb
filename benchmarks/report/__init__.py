"""Tables and plots of the documents, made from ``benchmarks/results``."""
