"""What the plan says, as a target executes it: types, depthwise layers, grids below 8 bits."""
