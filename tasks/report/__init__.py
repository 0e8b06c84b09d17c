"""Show what was found: results, report, artifacts."""
