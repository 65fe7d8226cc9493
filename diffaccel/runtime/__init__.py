"""The one machine that decides and reuses: sessions, lanes, acts, and the hooks that carry them."""
