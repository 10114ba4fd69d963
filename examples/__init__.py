"""Models of one's own, each with a posterior in a few lines: run one with `python -m examples.two_moons`."""
