"""Where rows come from: every source or generator ends as one canonical CSV. Knows no model."""
