"""Tables that compare methods, for one federation or as in the papers."""
