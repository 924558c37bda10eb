"""Back ends that run the graphs of a bundle; `base` says what one is, `select` picks one."""
