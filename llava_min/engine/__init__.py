"""A loaded model and everything that answers with it."""
