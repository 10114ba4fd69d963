"""Training runs: folders, engines, checkpoints, evaluation."""
