"""What the plan says, as a backend executes it: types, depthwise layers, grids below 8 bits."""
