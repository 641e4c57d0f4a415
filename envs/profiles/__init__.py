"""Profiles of devices: what is known of models and a machine, and how it is fitted to measurements."""
