"""From a folder of videos to batches of clips. Decoding needs no PyTorch, so its processes start fast."""
