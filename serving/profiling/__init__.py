"""Measuring models on the device at hand."""
