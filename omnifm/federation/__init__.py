"""The server's side of a run: the rounds, what is accepted from sites, and what is written down."""
