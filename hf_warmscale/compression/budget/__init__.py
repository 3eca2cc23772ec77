"""Sizes under a budget: what fits, what is tried, and which of it loses least."""
