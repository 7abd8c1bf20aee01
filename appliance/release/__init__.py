"""What must hold before anything leaves: gates, leak scan, reload, card, passport, replay."""
