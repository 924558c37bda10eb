"""Rendered scenes: the README's picture and the clip of ``vos-run demo``."""
