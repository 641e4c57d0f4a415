"""PPO for the candidates of a scheduler: the learner, its buffer, and the head start that Strait gives it."""
