"""dry_run."""
