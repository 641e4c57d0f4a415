"""Offline interference models, one a file, fitted and judged on the same splits by benchmarks.predictor."""
