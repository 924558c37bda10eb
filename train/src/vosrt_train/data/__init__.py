"""From a folder of videos to batches of clips. Decoding does without PyTorch, so that its processes start fast."""
