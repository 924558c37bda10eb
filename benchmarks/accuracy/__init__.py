"""J&F of networks and settings on annotated sequences."""
