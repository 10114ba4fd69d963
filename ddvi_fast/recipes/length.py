"""Length of training and size of batches on small data sets."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from ddvi_fast.data.batches import num_batches
from ddvi_fast.recipes.options import Options
from ddvi_fast.standardization import tell

Stated = TypeVar("Stated", bound=Options)

_BATCHES = 4  # fewest of an epoch


def fitted_to_size(options: Stated, size: int) -> Stated:
    """The options with which `size` training examples are trained for at least `recipe.min_steps` steps.

    Batches are no larger than a quarter of the data, and there are as many epochs as that takes. Where `epochs` states their number, batches are
    no larger than the data. Options whose `recipe.min_steps` is 0 stay as they are.

    Example:
        >>> from ddvi_fast.recipes.options import RecipeOptions
        >>> stated = Options(recipe=RecipeOptions(epochs=300, batch_size=256, min_steps=2000))
        >>> [(found.batch_size, found.epochs) for found in (fitted_to_size(stated, size).recipe for size in (100, 600, 2504))]
        [(25, 500), (150, 500), (256, 300)]
    """
    recipe = options.recipe
    if not (recipe.min_steps and size):
        return options
    if options.epochs is not None:
        return replace(options, recipe=replace(recipe, batch_size=min(recipe.batch_size, size)))
    rows = min(recipe.batch_size, max(1, size // _BATCHES))
    enough = -(-recipe.min_steps // num_batches(size, rows))
    return replace(options, recipe=replace(recipe, batch_size=rows, epochs=max(recipe.epochs, enough)))


def tell_smaller_batches(stated: int, fitted: int, size: int) -> None:
    """Tell that batches of `size` training examples have `fitted` of them, not the `stated` number, if that is so."""
    if fitted < stated:
        tell(f"batch_size: batches of {fitted} of the {size} training examples, not of {stated}, for recipe.min_steps")
