"""What comes in: arrivals, workloads and measurements."""
