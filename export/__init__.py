"""From published checkpoints to a model repository."""
