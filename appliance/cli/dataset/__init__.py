"""`appliance dataset`: the commands that bring rows; the only place that meets datasets_src."""
