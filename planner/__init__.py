"""vramplan: what fits, what is fastest among what fits, why, and the folder to run."""
