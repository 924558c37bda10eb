"""Matching, encoders and engines alone, on processors and GPUs."""
