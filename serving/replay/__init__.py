"""Recorded or generated requests offered to a live engine."""
