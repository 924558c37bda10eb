"""Pseudo-masks: the pixels of a video in clusters over space and time, and the clusters that may be objects."""
