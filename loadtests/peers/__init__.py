"""The same network behind other servers, written as plainly as their own documentation does it."""
