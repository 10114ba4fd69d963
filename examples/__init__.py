"""Examples of user-defined models and their posteriors. Run one with `python -m examples.two_moons`."""
