"""The register of names: the registered classes, their descriptions, and how to make them. Does not load torch."""
