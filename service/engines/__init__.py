"""Engines that run the graphs of a model repository."""
