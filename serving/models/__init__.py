"""Models to serve: eight of our own, and users' own by file or factory."""
