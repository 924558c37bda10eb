"""Matching and propagation: libvosrt through ctypes, the memory, and the NumPy definition that tests compare with."""
