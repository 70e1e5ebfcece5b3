"""The scripts that train the shipped weights: ``python -m retune.training.recipes.NAME --data FOLDER``."""
