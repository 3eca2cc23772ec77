"""Search the weights of a merge with Gaussian-process Bayesian optimisation."""
