"""The field's own exams: lmms-eval asks this project's models."""
