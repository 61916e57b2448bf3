"""The plan's graph as a backend executes it: types, depthwise layers, grids below 8 bits."""
