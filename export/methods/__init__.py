"""Networks of the methods, in torch."""
