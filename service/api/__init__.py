"""The gRPC edge: converters, servicers, interceptors, the error table."""
