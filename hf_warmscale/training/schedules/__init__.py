"""Learning-rate schedules: pure functions of the step, and the scheduler that applies them."""
