"""Rules by what they look at: functions of a graph, and beside them the effect and the remedy."""
