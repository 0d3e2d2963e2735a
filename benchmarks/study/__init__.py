"""The study of study.md."""
