"""The scripts that train the shipped weights: ``python -m recipes.NAME --data FOLDER``."""
