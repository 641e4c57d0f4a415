"""The messages of the Open Inference Protocol over gRPC; needs the extra `grpc`, so only `serving.api.grpc` imports it."""
