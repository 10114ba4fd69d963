"""Recipes: options, registry of posterior families, and assembly of models, posteriors and training phases."""

from ddvi_fast.recipes.build import RECIPES, Recipe, build, register
from ddvi_fast.recipes.families import FAMILIES, Family
from ddvi_fast.recipes.options import Options
from ddvi_fast.recipes.phases import Experiment, Optimisation, Phase

__all__ = ["FAMILIES", "RECIPES", "Experiment", "Family", "Optimisation", "Options", "Phase", "Recipe", "build", "register"]
