"""Models: a name, a folder or a config dict becomes a ModelSpec."""
