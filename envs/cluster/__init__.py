"""Many replicas behind a router: what a router knows of them, and their simulation as worlds of one batch."""
