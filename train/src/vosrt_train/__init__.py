"""Training: networks in PyTorch, their checkpoints, and the command ``vos-train``."""
