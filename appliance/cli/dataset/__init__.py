"""`appliance dataset`: the commands that bring in rows; the only package that imports datasets_src."""
