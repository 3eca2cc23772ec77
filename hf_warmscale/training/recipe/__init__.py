"""A YAML recipe: read it, open its sources, run it."""
