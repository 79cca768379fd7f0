"""The check of a site's data before training: reading every case, what was found, the page and its sample pictures."""
