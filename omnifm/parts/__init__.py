"""The parts of the paper, one file each, and the routing that we added.  No part imports another."""
