"""The parts of the paper, and our routing of averages; one file or folder each.  No part imports another."""
