"""One message when a command on a run has ended, through Apprise; a failing one changes nothing."""
