"""A question with its pictures and clips becomes a plan and pixels."""
