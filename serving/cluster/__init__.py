"""Several replicas behind one address: requests go from the door, which listens, to a replica directly."""
