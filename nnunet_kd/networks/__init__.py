"""Networks a plans file can name; each builds from input channels, classes and keywords that default to its paper."""
