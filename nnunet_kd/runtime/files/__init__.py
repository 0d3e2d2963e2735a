"""Files: read with care, written whole or not at all, never over an input; the standard library alone."""
