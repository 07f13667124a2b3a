"""The work: what to train (plan), the loop (trainer), what it keeps (checkpoint), its worth (evaluation)."""
