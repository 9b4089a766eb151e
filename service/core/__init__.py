"""Tasks, guidance, caches, segmentation. Knows neither gRPC nor engines nor databases."""
