"""What this package needs of transformers beyond its public API; a test of each function says what broke."""
