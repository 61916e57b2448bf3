"""Ranges from real inputs: which values a tensor takes, and its clip value."""
