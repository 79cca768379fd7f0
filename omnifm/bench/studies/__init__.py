"""Studies of single questions: spectra of modalities, and hospitals that join late."""
