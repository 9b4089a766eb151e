"""The gateway: registered tasks in, masks out."""
