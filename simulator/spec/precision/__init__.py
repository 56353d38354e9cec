"""Number formats of GEMMs: recipes as data, and a job's settings of them."""

from simulator.spec.precision.recipes import RECIPES, Recipe, RecipeRecord
from simulator.spec.precision.settings import (
    Formats,
    HighPrecision,
    Kept,
    Precision,
    PrecisionStack,
    Primary,
    Scaling,
    formats_of,
)

__all__ = [
    "RECIPES",
    "Formats",
    "HighPrecision",
    "Kept",
    "Precision",
    "PrecisionStack",
    "Primary",
    "Recipe",
    "RecipeRecord",
    "Scaling",
    "formats_of",
]
