"""Routers, one file each: which replica a request is sent to; ``registry`` knows them by name."""
