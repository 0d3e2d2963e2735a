"""Teachers: found, checked, loaded, frozen and run."""
