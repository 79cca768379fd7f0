"""A site's data: reading it correctly, refusing what cannot be read correctly, and splitting it by patient."""
