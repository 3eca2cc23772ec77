"""What this package needs of peft beyond its public API; a test of each function says what broke."""
