"""The one register of names: which classes have one, how they are described, and how they are made. Loads no torch."""
