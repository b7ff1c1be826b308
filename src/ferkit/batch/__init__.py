"""Many inputs: the photos that a user names."""
