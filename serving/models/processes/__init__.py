"""Processes that work for the server, and models that run in processes of their own."""
