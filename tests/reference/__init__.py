"""What the ops compute, written for clarity: in float64, and plainly in the precision of the kernels."""
