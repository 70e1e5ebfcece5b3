"""The proved facts of the maps, derived from the facts of their parts: one function for each kind of map."""
