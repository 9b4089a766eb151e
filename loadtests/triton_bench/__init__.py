"""What the gateway adds to Triton, and how well both use the cores."""
