"""Facts about a forward operator, and the data term that is built on it."""
