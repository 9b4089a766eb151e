"""Stores that keep support sets."""
