"""Where rows come from: every source or generator produces one canonical CSV. Knows no model."""
