"""The live server: models, executor, engine, profiler, HTTP front, telemetry."""
