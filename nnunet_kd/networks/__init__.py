"""Networks that the plans can name; the default arguments are those of each network's paper."""
