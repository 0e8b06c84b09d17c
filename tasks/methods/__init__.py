"""One file, one method: what ranks documents for queries."""
