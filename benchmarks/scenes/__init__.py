"""Rendered scenes: the README's picture, the clip of ``vos-run demo``, and embeddings of no network."""
