"""Template to text to ids to a padded batch; the check that a model learns to stop."""
