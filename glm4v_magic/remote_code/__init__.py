"""remote_code."""
