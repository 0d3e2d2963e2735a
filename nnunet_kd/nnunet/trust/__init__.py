"""Safe reading of files from untrusted sources, which either pass the checks or are refused in one sentence."""
