"""The gRPC edge: converters, servicers, reception of calls, the error table."""
