"""The live server: models, executors, engine, profiler, HTTP and gRPC, observers."""
