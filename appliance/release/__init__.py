"""What is checked and written before a release is uploaded: gates, leak scan, reload, card, passport, replay."""
