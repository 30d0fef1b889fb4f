"""`fairlead guard serve`: the guard in front of any model, in the wire formats that clients already speak."""
