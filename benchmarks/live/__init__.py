"""Policies live on one machine, and the simulator beside them."""
