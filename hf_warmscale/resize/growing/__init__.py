"""Carry out a growth, in memory or streamed, and record it in a receipt."""
