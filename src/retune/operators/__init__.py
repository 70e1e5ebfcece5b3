"""Facts about a forward operator, and the data term that uses it."""
