"""Evidence from minutes on a GPU: steps in order of worth, each safe from the failures of the others."""
