"""What commands share: how one ends, what those that run a model ask for and say, and their report."""
