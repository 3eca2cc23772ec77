"""Choose what a smaller model keeps, or undo a growth by its receipt."""
