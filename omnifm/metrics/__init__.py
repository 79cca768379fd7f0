"""Metrics, one file per kind.  Each comes from a library, or is a few lines of numpy that a test compares with one."""
