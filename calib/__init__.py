"""Real inputs to ranges: what values a tensor takes, and the clip value that follows."""
