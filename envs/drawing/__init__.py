"""Pictures of a scheduler and of a run, simulated or live."""
