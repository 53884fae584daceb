"""What a question will cost in bytes and seconds, before anything is loaded."""
