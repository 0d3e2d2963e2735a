"""Find, check, load and run the teachers of a student."""
