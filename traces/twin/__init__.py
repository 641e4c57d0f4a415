"""Synthetic arrivals with the statistics of real traces: the generator, its theory, its fit, and known traces by name."""
