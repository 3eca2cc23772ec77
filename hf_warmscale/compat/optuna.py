"""What this package needs of Optuna beyond its public API; a test of each function says what broke."""
