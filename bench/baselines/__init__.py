"""What the fused operations are compared with."""
