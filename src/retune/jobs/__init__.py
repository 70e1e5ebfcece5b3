"""The work of the verbs of the command line, callable from Python."""
