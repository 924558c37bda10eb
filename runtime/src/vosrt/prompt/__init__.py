"""From clicks and boxes to a mask of one frame."""
