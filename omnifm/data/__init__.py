"""A site's data: reading it correctly, refusing what cannot be, and splitting it by patient."""
