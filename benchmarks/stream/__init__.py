"""Whole frames: one stream, many streams, the C++ host, large videos."""
