"""Command line; one file a verb."""
