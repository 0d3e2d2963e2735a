"""What may be opened: files that may come from anybody are read as they should be, or refused in one sentence."""
