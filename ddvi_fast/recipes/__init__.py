"""Assembly of models, posteriors and training phases from a recipe."""
