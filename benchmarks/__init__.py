"""Scripts that measure vosrt; ``python -m benchmarks.FOLDER.SCRIPT`` runs one from the repository's root."""
