"""What watches the engine: logs, metrics, recordings, timelines."""
