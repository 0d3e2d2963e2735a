"""Files and processes: whole files or none, digests, inputs that stay, processes that end with their parent."""
