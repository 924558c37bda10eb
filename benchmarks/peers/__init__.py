"""A frame of vosrt beside other methods."""
