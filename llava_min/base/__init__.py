"""Small things that many rooms need: files, memory errors, progress, the CPU."""
