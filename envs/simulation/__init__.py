"""The simulated device and its arrivals: what only the simulator needs."""
