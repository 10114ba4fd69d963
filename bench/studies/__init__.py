"""Studies: programs that take long, each with its own results file."""
