"""Safe reading of files from untrusted sources, which are refused in one sentence if they are not what they should be."""
