"""The HTML page and the plots of a run; decides nothing."""
