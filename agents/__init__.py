"""Who decides: the policy interface, heuristics, the learned agent, training and evaluation."""
