"""``vos-run ui``: a page on this machine to mark, follow, correct and export objects of a clip."""
