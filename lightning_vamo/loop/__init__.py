"""Everything that touches Lightning's loops; `compat` holds every access to its private parts."""
