"""What the user's data says about lengths: read in one pass or by sample, never held in memory whole."""
