"""Devices that run batches: CPU threads or CUDA streams."""
