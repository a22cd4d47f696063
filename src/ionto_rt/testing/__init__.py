"""What an embedder can test a host of his own with."""
