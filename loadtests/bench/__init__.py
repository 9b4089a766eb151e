"""The short standard suite: a table of promises, each beside its floor, misses included."""
