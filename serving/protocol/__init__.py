"""The messages of the Open Inference Protocol over gRPC; needs the extra `grpc`, so only `serving.grpc_front` imports it."""
