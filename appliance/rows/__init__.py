"""CSV bytes to rows, oddities, split, leaks."""
