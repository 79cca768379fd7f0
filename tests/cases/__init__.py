"""Situations that hospitals report in public (`../shared/cases`), with the right behaviour of each."""
