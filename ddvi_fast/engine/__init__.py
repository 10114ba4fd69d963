"""Training: one readable loop, and the engines that carry it out."""
