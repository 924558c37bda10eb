"""Export: checkpoints become bundles, and every bundle is compared with its checkpoint."""
