"""What this package needs of torch beyond its public API; a test of each function says what broke."""
