"""Many runs at once, on Ray, one for each CSV or setting. Starts `appliance run`, and reads what it left."""
