"""The live engine: one loop that owns the scheduling state."""
