"""The objects of a run, each from its section."""
